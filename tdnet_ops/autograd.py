"""Differentiation and vmap of custom operators, under the transforms of torch.func too.

torch.library.register_autograd makes an autograd.Function of its own for each operator, which
torch.func refuses. The kernels here build a node of the level that torch.func is at and leave the
lower levels to the dispatcher, as torch's own operators do. Forward mode is refused: left alone,
the dispatcher drops tangents in silence.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._functorch.autograd_function import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction
from torch.utils import _pytree as pytree

from tdnet_ops import gradients
from tdnet_ops.operators.operator import Operator


def _tensors(arguments: Sequence[Any]) -> list[Tensor]:
    """All tensors of a call in order, those in lists too."""
    found = []
    for argument in arguments:
        if isinstance(argument, Tensor):
            found.append(argument)
        elif isinstance(argument, (list, tuple)):
            found += [item for item in argument if isinstance(item, Tensor)]
    return found


def _refuse_tangents(name: str, arguments: Sequence[Any]) -> None:
    if any(forward_ad.unpack_dual(x).tangent is not None for x in _tensors(arguments)):
        raise NotImplementedError(
            f"{name}: forward-mode differentiation (torch.func.jvp, jacfwd, forward_ad) is not "
            "implemented; use reverse mode (torch.func.vjp, jacrev, backward), or the function of "
            "this name in tdnet_ops.reference, which PyTorch differentiates in both"
        )


def _no_autocast(grads: Sequence[Tensor | None]) -> contextlib.AbstractContextManager[Any]:
    """A backward pass inside an autocast block is the same as outside of it.

    Logits rounded to half precision would not fit the log-sum-exp of the forward pass.
    """
    device_type = next((grad.device.type for grad in grads if grad is not None), "cpu")
    return gradients.without_autocast(device_type)


def autograd_kernel(
    operator: Operator, overload: Any, gradient: Callable[..., dict[str, Any]], shown_name: str
) -> Callable[..., Any]:
    """The kernel of an operator for the dispatch key Autograd, registered with its keyset.

    Args:
        overload: of the operator, in one name space.
        gradient: `gradient(ctx, *grads)`, the gradients by the names of arguments; a list for a
            list of tensors.
        shown_name: of the operator in errors and profiles.
    """
    names = [a.name for a in overload._schema.arguments if not a.kwarg_only]
    results = len(overload._schema.returns)

    class Node(_SingleLevelFunction):
        # torch.autograd.Function has it, its base has not: compiled autograd asks for it.
        _compiled_autograd_key = staticmethod(torch.autograd.Function._compiled_autograd_key)

        @staticmethod
        def forward(
            ctx: Any, keyset: Any, arguments: Sequence[Any], keywords: dict[str, Any], *_: Tensor
        ) -> Any:
            # Both modes are off in here; the lower levels of torch.func differentiate too.
            lower = torch._C._are_functorch_transforms_active()
            bound = operator.bind(arguments, keywords)
            with (
                torch.set_grad_enabled(lower),
                forward_ad._set_fwd_grad_enabled(lower),
                torch._C._AutoDispatchBelowAutograd(),
            ):
                kernel = functools.partial(overload.redispatch, keyset)
                if operator.compute is None:
                    output = kernel(*arguments, **keywords)
                else:
                    output = operator.compute(kernel, bound)
            ctx.slots = {name: len(_tensors([getattr(bound, name)])) for name in names}
            if operator.save is not None:
                operator.save(ctx, bound, output)
            return output if operator.compute is None else output[:results]

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
            with _no_autocast(grads):
                by_name = gradient(ctx, *grads)
            found: list[Tensor | None] = []
            for name, slots in ctx.slots.items():
                grad = by_name.get(name)
                found += grad if isinstance(grad, list) else [grad] * slots
            return None, None, None, *found

    # What profiles, anomaly mode and grad_fn show.
    node: Any = Node._backward_cls
    node.__name__ = node.__qualname__ = f"{shown_name}_backward"

    def differentiated(below: Any, *arguments: Any, **keywords: Any) -> Any:
        # By default torch.func takes this class in its hands for a mistake.
        with enable_single_level_autograd_function():
            return Node.apply(  # type: ignore[attr-defined]
                below, arguments, keywords, *_tensors(arguments)
            )

    return _kernel(shown_name, overload, differentiated)


def first_result_of(by: Callable[..., Any], overload: Any) -> Callable[..., Any]:
    """As autograd_kernel, for an operator that another one differentiates, by whose kernel."""

    def differentiated(below: Any, *arguments: Any, **keywords: Any) -> Any:
        return by(below, *arguments, **keywords)[0]

    return _kernel(overload._schema.name.partition("::")[2], overload, differentiated)


def _kernel(name: str, overload: Any, differentiated: Callable[..., Any]) -> Callable[..., Any]:
    def kernel(keyset: Any, *arguments: Any, **keywords: Any) -> Any:
        if forward_ad._current_level >= 0 and torch._C._is_fwd_grad_enabled():
            _refuse_tangents(name, arguments)
        below = keyset & torch._C._after_autograd_keyset
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments):
            return differentiated(below, *arguments, **keywords)
        with torch._C._AutoDispatchBelowAutograd():
            return overload.redispatch(below, *arguments, **keywords)

    return kernel


def vmap_rule(overload: Any, per_sample: Sequence[str]) -> Callable[..., Any]:
    """What torch.library.register_vmap takes for an operator.

    Args:
        overload: of the operator.
        per_sample: the arguments whose first dimension is the batch, as in every result. Where no
            other is mapped over, the batch takes in the mapped dimension; else the operator runs
            once a sample.
    """
    foldable = [argument.name in per_sample for argument in overload._schema.arguments]

    def rule(info: Any, in_dims: Sequence[Any], *arguments: Any, **keywords: Any) -> Any:
        count = info.batch_size

        def fold(x: Any, dim: int | None) -> Any:
            if not isinstance(x, Tensor):
                return x
            x = x.expand(count, *x.shape) if dim is None else x.movedim(dim, 0)
            return x.flatten(0, 1)

        def run(sample: int) -> Any:
            taken = pytree.tree_map(
                lambda x, dim: x if dim is None else x.select(dim, sample), arguments, in_dims
            )
            return overload(*taken, **keywords)

        if count == 0:  # The shapes of one of zeros, and none of it.
            zeros = pytree.tree_map(
                lambda x, dim: x if dim is None else x.sum(dim), arguments, in_dims
            )
            none = pytree.tree_map(lambda x: x[None][:0], overload(*zeros, **keywords))
            return none, pytree.tree_map(lambda _: 0, none)
        mapped = [any(dim is not None for dim in pytree.tree_leaves(dims)) for dims in in_dims]
        if all(fits for fits, is_mapped in zip(foldable, mapped, strict=False) if is_mapped):
            folded = [
                pytree.tree_map(fold, x, dims) if fits else x
                for x, dims, fits in zip(arguments, in_dims, foldable, strict=False)
            ]
            results = overload(*folded, **keywords)
            stacked = pytree.tree_map(
                lambda x: x.unflatten(0, (count, x.shape[0] // count)), results
            )
        else:
            runs = [run(sample) for sample in range(count)]
            stacked = pytree.tree_map(lambda *parts: torch.stack(parts), *runs)
        return stacked, pytree.tree_map(lambda _: 0, stacked)

    return rule
