"""Whether a fused forward computes what the original does, tried on copies of the block."""

from __future__ import annotations

import collections
import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

from tdnet_ops.nn import has_hooks
from tdnet_ops.swap.fused_class import fuse
from tdnet_ops.swap.known_block import Forward, Refused, Size

SMALL: Size = (5, 7)
# More pixels than a top-k reads or a window spans.
LARGE: Size = (19, 23)
# In float64 what is computed, in float32 that the kernels can do it. Difference by magnitude; some
# blocks compute their softmax in float32 whatever comes.
TOLERANCES = {torch.float64: 2e-5, torch.float32: 1e-3}
# Smaller magnitudes count as this.
_LEAST_MAGNITUDE = 1e-3
# And those of gradients as this share of the largest: that of a bias of keys is zero but for
# rounding.
_LEAST_SHARE = 0.1
_GRADIENT = "the gradient of "

Inputs = Callable[[Any, int, Size], tuple[Any, ...]]


@dataclass(frozen=True)
class Trial:
    dtype: torch.dtype
    batch: int
    size: Size
    training: bool

    def __str__(self) -> str:
        mode = "train" if self.training else "eval"
        return f"batch {self.batch}, {self.size[0]} x {self.size[1]}, {mode}"


def _trials() -> Iterator[Trial]:
    for training in (False, True):
        yield Trial(torch.float64, 1, SMALL, training)
        yield Trial(torch.float64, 2, SMALL, training)
        yield Trial(torch.float64, 1, LARGE, training)
        yield Trial(torch.float32, 2, SMALL, training)


def verify(block: nn.Module, forward: Forward, inputs: Inputs) -> tuple[str, ...]:
    """Compares outputs, gradients and buffers under random parameters.

    In train and eval, for batches of 1 and 2 and odd sizes; nothing of the block changes.

    Returns:
        Names of the parts that the original calls and the fused forward does not.

    Raises:
        Refused: they differ, or it cannot be told.
    """
    if any(parameter.is_meta for parameter in block.parameters()):
        raise Refused("it cannot be verified on the meta device")
    skipped: set[str] = set()
    with _undisturbed(block):
        for trial in _trials():
            skipped |= _compare(block, forward, inputs, trial)
    for name in sorted(skipped):
        if has_hooks(block.get_submodule(name)):
            raise Refused(f"{name} has hooks, and the fused forward does not call it")
    return tuple(sorted(skipped))


@contextlib.contextmanager
def _undisturbed(block: nn.Module) -> Iterator[None]:
    """Random numbers of the caller go on as if nothing had been; gradients are on."""
    devices = {p.device for p in block.parameters() if p.device.type != "cpu"}
    kind = next((device.type for device in devices), "cpu")
    with (
        torch.random.fork_rng(list(devices), device_type=kind if devices else "cuda"),
        torch.inference_mode(False),
        torch.autocast(kind, enabled=False),
    ):
        torch.manual_seed(0)
        yield


def independent_copy(block: nn.Module) -> nn.Module:
    """With hooks that do nothing in place of the user's, which would see our trials."""
    memo: dict[int, Any] = {}
    for module in block.modules():
        # deepcopy refuses those with a history, such as the weight under a spectral norm.
        for x in vars(module).values():
            if isinstance(x, Tensor) and not x.is_leaf:
                memo[id(x)] = x.detach().clone()
    copied = copy.deepcopy(block, memo)
    for module in copied.modules():
        for hooks in (
            module._forward_hooks,
            module._forward_pre_hooks,
            module._backward_hooks,
            module._backward_pre_hooks,
        ):
            for key, hook in hooks.items():
                if not type(hook).__module__.startswith("torch.nn.utils"):
                    hooks[key] = _do_nothing
    return copied


def _do_nothing(*_: object) -> None:
    """A hook."""


def _randomise(block: nn.Module) -> None:
    """Parameters and norm statistics: what starts at zero or one would hide a wrong mapping."""
    for module in block.modules():
        for parameter in module._parameters.values():
            if parameter is not None and parameter.is_floating_point():
                parameter.data = _random(parameter.data)
                parameter.requires_grad_()
        for name, draw in (("running_mean", torch.randn_like), ("running_var", _about_one)):
            buffer = module._buffers.get(name)
            if buffer is not None:
                buffer.copy_(draw(buffer))


def _random(x: Tensor) -> Tensor:
    """Weights that keep the magnitude of what they multiply; vectors and scales of either sign."""
    if x.dim() > 1:
        return torch.randn_like(x) / (x.numel() / x.shape[0]) ** 0.5
    return _about_one(x) * torch.randint_like(x, 2).mul(2).sub(1)


def _about_one(x: Tensor) -> Tensor:
    return torch.rand_like(x) + 0.5


def _compare(block: nn.Module, forward: Forward, inputs: Inputs, trial: Trial) -> set[str]:
    """Names of the parts that only the original calls."""
    try:
        original = independent_copy(block).to(trial.dtype)
        _randomise(original)
    except Exception as error:
        raise Refused(f"it cannot be copied to be verified: {_told(error)}") from error
    device = next((p.device for p in original.parameters()), torch.device("cpu"))
    given = inputs(original, trial.batch, trial.size)
    given = tree_map(lambda x: _cast(x, trial.dtype, device), given)
    try:
        with torch.no_grad():
            # A spectral norm estimates the new weights.
            original.train()(*given)
        original.train(trial.training)
        fused = independent_copy(original)
        state = torch.random.get_rng_state()
        expected, called = _run(original, given)
    except Exception as error:
        raise Refused(f"it cannot be verified ({trial}): {_told(error)}") from error
    fuse(fused, forward)
    torch.random.set_rng_state(state)
    try:
        came, still_called = _run(fused, given)
    except Exception as error:
        raise Refused(f"the fused forward fails ({trial}): {_told(error)}") from error
    _check_all(expected, came, trial)
    return {name for name, count in called.items() if still_called[name] < count}


def _check_all(expected: dict[str, Any], came: dict[str, Any], trial: Trial) -> None:
    if expected.keys() != came.keys():
        other = ", ".join(sorted(expected.keys() ^ came.keys()))
        raise Refused(f"one forward gives {other}, the other one does not ({trial})")
    gradients = [name for name in expected if name.startswith(_GRADIENT)]
    share = _LEAST_SHARE * max((_magnitude(expected[name]) for name in gradients), default=0.0)
    for name, value in expected.items():
        least = max(_LEAST_MAGNITUDE, share if name in gradients else 0.0)
        _check_same(name, value, came[name], least, trial)


def _cast(x: Any, dtype: torch.dtype, device: torch.device) -> Any:
    if not isinstance(x, Tensor):
        return x
    return x.to(device, dtype) if x.is_floating_point() else x.to(device)


def _run(block: nn.Module, given: tuple[Any, ...]) -> tuple[dict[str, Any], collections.Counter]:
    """What a training step sees of the block, by name, and how often each part was called."""
    given = tree_map(lambda x: x.clone().requires_grad_() if _differentiable(x) else x, given)
    with _counted(block) as called:
        # Not the leaves themselves, which no block may overwrite.
        output = block(*tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, given))
    leaves, structure = tree_flatten(output)
    seen: dict[str, Any] = {"the structure of its output": structure}
    for i, leaf in enumerate(leaves):
        seen["its output" + f"[{i}]" * (len(leaves) > 1)] = leaf
    sources = {f"{_GRADIENT}input {i}": x for i, x in enumerate(tree_leaves(given))}
    sources |= {f"{_GRADIENT}{name}": x for name, x in block.named_parameters()}
    seen |= _gradients(leaves, {name: x for name, x in sources.items() if _differentiable(x)})
    seen |= dict(block.named_buffers())
    seen |= _attributes(block)
    return seen, called


def _differentiable(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def _gradients(outputs: list[Any], sources: dict[str, Tensor]) -> dict[str, Tensor | None]:
    """Of a sum of the outputs weighted by waves, which no symmetry of the block is blind to."""
    total = sum(
        (x * torch.arange(x.numel(), dtype=x.dtype, device=x.device).sin().view(x.shape)).sum()
        for x in outputs
        if _differentiable(x) and x.requires_grad
    )
    if not isinstance(total, Tensor):
        return dict.fromkeys(sources)
    gradients = torch.autograd.grad(total, list(sources.values()), allow_unused=True)
    return dict(zip(sources, gradients, strict=True))


def _attributes(block: nn.Module) -> dict[str, Any]:
    """Tensors that forward leaves on the block or its parts, such as attention weights."""
    return {
        f"attribute {name}.{key}".replace(" .", " "): x.detach()
        for name, module in block.named_modules()
        for key, x in vars(module).items()
        if isinstance(x, Tensor)
    }


@contextlib.contextmanager
def _counted(block: nn.Module) -> Iterator[collections.Counter]:
    """Counts the calls of each part by name; without hooks on the parts, which would tell."""
    names = {id(part): name for name, part in block.named_modules() if name}
    called: collections.Counter = collections.Counter()

    def count(module: nn.Module, _: Any, output: Any) -> None:
        if id(module) in names:
            called[names[id(module)]] += 1
            _mend_gradient(module, output)

    handle = register_module_forward_hook(count)
    try:
        yield called
    finally:
        handle.remove()


def _magnitude(x: Any) -> float:
    if not _differentiable(x) or x.numel() == 0:
        return 0.0
    return float(x.detach().abs().max())


def _mend_gradient(module: nn.Module, output: Any) -> None:
    """Hands a batch norm a gradient in the layout of its output.

    For a batch of 1 in another layout, as a transposed product gives it, torch 2.14 computes a
    wrong gradient on CPUs, which would count as the original's.
    """
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and output.requires_grad:
        layout = torch.empty_like(output)
        output.register_hook(lambda gradient: layout.copy_(gradient))


def _check_same(name: str, expected: Any, came: Any, least: float, trial: Trial) -> None:
    if not (isinstance(expected, Tensor) and isinstance(came, Tensor)):
        if expected is not came and expected != came:
            raise Refused(f"{name} differs ({trial}): {expected} became {came}")
        return
    if (expected.shape, expected.dtype) != (came.shape, came.dtype):
        raise Refused(f"{name} differs ({trial}): {_kind(expected)} became {_kind(came)}")
    if expected.numel() == 0:
        return
    expected, came = expected.detach().double(), came.detach().double()
    if not expected.isfinite().all():
        raise Refused(f"it cannot be verified: {name} is not finite for random parameters")
    magnitude = max(_magnitude(expected), least)
    difference = float((expected - came).abs().max()) / magnitude
    if not difference <= TOLERANCES[trial.dtype]:
        raise Refused(f"{name} differs by {difference:.2g} of its magnitude ({trial})")


def _kind(x: Tensor) -> str:
    return f"{list(x.shape)} of {x.dtype}"


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
