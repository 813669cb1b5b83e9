"""What can run here and why not: one predicate, `refusal`, both dispatches and explains.

A backend is a set of custom operators with one name space: "cpu" and "cuda" are the compiled
kernels of `torch.ops.tdnet`, "triton" those of `torch.ops.tdnet_triton`, "reference" is plain
PyTorch in `torch.ops.tdnet_reference`. A backend need not have every operator: the next one in the
device's order runs what it lacks. The backward pass takes the backend of the forward pass where
that has the kernels, so a forced one holds there too, whichever thread runs it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from tdnet_ops import _library

_Function = TypeVar("_Function", bound=Callable[..., Any])

NAMES = ("cpu", "cuda", "triton", "reference")
NAME_SPACES = {
    "cpu": _library.NAME_SPACE,
    "cuda": _library.NAME_SPACE,
    "triton": f"{_library.NAME_SPACE}_triton",
    "reference": f"{_library.NAME_SPACE}_reference",
}


class Operator(Protocol):
    """What is asked of an operator here; tdnet_ops/operators/operator.py has the rest."""

    @property
    def name(self) -> str: ...
    @property
    def limits(self) -> Mapping[str, Callable[..., str | None]]: ...
    def bind(self, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> Any: ...


class _Forced(threading.local):
    """The forced backend of each thread.

    torch.compile cannot trace a ContextVar, but guards on an instance attribute of a
    threading.local, so a compiled function is never stale. It must be set here: an attribute of
    the class would not be guarded.
    """

    def __init__(self) -> None:
        self.name: str | None = None


_forced = _Forced()


def _check_name(name: str) -> None:
    if name not in NAMES:
        raise ValueError(f"backend: expected one of {list(NAMES)}, got {name!r}")


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Forces one backend for every operator called inside the block, and for its backward pass.

    Args:
        name: "cpu", "cuda", "triton" or "reference". Holds for the current thread.

    Raises:
        ValueError: an unknown name.
        RuntimeError: later, from an operator that the backend cannot run, with the reason.
    """
    _check_name(name)
    outer = _forced.name
    _forced.name = name
    try:
        yield
    finally:
        _forced.name = outer


def serves(architectures: str, capability: tuple[int, int]) -> bool:
    """Whether kernels compiled for `architectures` run on a GPU of this compute capability.

    Args:
        architectures: as TORCH_CUDA_ARCH_LIST, for example "8.0;9.0a;12.0+PTX".
        capability: (major, minor). Machine code runs on its own and later minor numbers of one
            major, with the suffix a on exactly its own; PTX on everything that is not older.
    """
    for entry in filter(None, architectures.split(";")):
        number = entry.removesuffix("+PTX")
        compiled = tuple(map(int, number.rstrip("af").split(".")))
        if entry.endswith("+PTX") and compiled <= capability and not number.endswith("a"):
            return True
        later_minor = compiled[0] == capability[0] and compiled[1] <= capability[1]
        if compiled == capability or (later_minor and not number.endswith("a")):
            return True
    return False


def _constant(function: _Function) -> _Function:
    """Lets torch.compile take what a function returns as a constant instead of tracing into it.

    As torch.compiler.assume_constant_result, which imports torch._dynamo: more than a second.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def _why_not_triton(device_type: str) -> str | None:
    try:
        import triton
    except ImportError as error:
        return f"Triton cannot be imported ({error})"
    if not hasattr(triton, "knobs"):
        found = getattr(triton, "__version__", "a folder of that name")
        return f"a newer Triton is needed, found {found}"
    if triton.knobs.runtime.interpret and device_type == "cpu":
        return None
    if device_type not in ("cuda", "xpu"):
        return f"its kernels take cuda or xpu tensors, got {device_type}"
    if not torch.get_device_module(device_type).is_available():
        return f"torch finds no {device_type.upper()} device"
    compiler = os.environ.get("CC")
    if not any(shutil.which(name) for name in ([compiler] if compiler else ["gcc", "clang"])):
        wanted = f"CC={compiler} is none" if compiler else "install gcc or clang, or set CC"
        return f"Triton needs a C compiler to launch what it compiles: {wanted}"
    return None


def _why_not_cuda(device: torch.device) -> str | None:
    if not _library.CUDA_ARCHITECTURES:
        return f"its kernels were {_library.CUDA_STATUS}"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    if device.type != "cuda":
        return f"its kernels take cuda tensors, got {device.type}"
    capability = torch.cuda.get_device_capability(device)
    if not serves(_library.CUDA_ARCHITECTURES, capability):
        return (
            f"its kernels were compiled for {_library.CUDA_ARCHITECTURES}, this GPU is "
            f"{capability[0]}.{capability[1]}: Triton or the reference has to serve it"
        )
    return None


def has_kernel(name: str, operator: str) -> bool:
    """Whether a backend has a kernel of an operator, whatever the machine."""
    if name in ("cpu", "cuda"):
        qualified, key = f"{NAME_SPACES[name]}::{operator}", name.upper()
        return bool(torch._C._dispatch_has_kernel_for_dispatch_key(qualified, key))
    if name == "triton":
        return (Path(__file__).parent / "triton" / f"{operator}.py").is_file()
    return True


# What a process finds on a machine does not change while it runs.
@functools.cache
def _why_not(name: str, operator: str, device: torch.device, dtype: torch.dtype) -> str | None:
    reason = None
    if name == "cpu" and device.type != "cpu":
        reason = f"its kernels take cpu tensors, got {device.type}"
    elif name == "cuda":
        reason = _why_not_cuda(device)
    elif name == "triton":
        reason = _why_not_triton(device.type)
    if reason is None and not has_kernel(name, operator):
        reason = "it has no kernel of this operator"
    if reason is None and name != "reference" and dtype == torch.float64:
        reason = "its kernels compute in float32, got float64"
    return reason


# torch.compile takes what these two return as constants. Plain functions: it would trace into one
# that functools.cache has wrapped.
@_constant
def why_unavailable(
    name: str, operator: str, device: torch.device, dtype: torch.dtype
) -> str | None:
    """Why a backend cannot run an operator for tensors of this device and dtype; None if it can."""
    return _why_not(name, operator, device, dtype)


@_constant
def first_available(operator: str, device: torch.device, dtype: torch.dtype) -> str:
    """The backend that runs an operator where none is forced and no kernel refuses the call."""
    return _first(operator, device, dtype)


@functools.cache
def _first(operator: str, device: torch.device, dtype: torch.dtype) -> str:
    return next(
        name for name in preference(device.type) if _why_not(name, operator, device, dtype) is None
    )


# Kernels on CUDA count maps, channels and pixels in an int, with room for the last tile.
_MOST_COUNTED = 2**31 - 1 - 1024


def _too_large(name: str, arguments: Sequence[Any]) -> str | None:
    """Why the kernels of a backend cannot count what a call has; None if they can.

    Not asked while torch.compile traces: it would bind a graph of dynamic sizes to the answer. The
    launchers check too.
    """
    if name != "cuda" or torch.compiler.is_compiling():
        return None
    for argument in arguments:
        for x in argument if isinstance(argument, (list, tuple)) else (argument,):
            if isinstance(x, torch.Tensor) and x.numel() > _MOST_COUNTED:
                pixels = (x.shape[2] * x.shape[3],) if x.dim() == 4 else ()
                if max(*x.shape, *pixels) > _MOST_COUNTED:
                    return (
                        f"its kernels count to {_MOST_COUNTED}, got a tensor {list(x.shape)}, with "
                        "more maps, channels or pixels"
                    )
    return None


def refusal(
    name: str, operator: Operator, like: torch.Tensor, arguments: Sequence[Any]
) -> str | None:
    """Why a backend cannot run this call of an operator; None if it can.

    Args:
        name: of the backend.
        like: the tensor whose device and dtype decide.
        arguments: of the schema, all positional ones.
    """
    reason = why_unavailable(name, operator.name, like.device, like.dtype)
    if reason is None:
        reason = _too_large(name, arguments)
    if reason is None and name in operator.limits:
        return operator.limits[name](operator.bind(arguments, {}))
    return reason


def require(name: str, operator: Operator, like: torch.Tensor, arguments: Sequence[Any]) -> None:
    """Raises RuntimeError with the reason why a backend cannot run this call, if there is one."""
    reason = refusal(name, operator, like, arguments)
    if reason is not None:
        raise RuntimeError(f"backend {name!r} cannot run {operator.name}: {reason}")


def preference(device_type: str) -> tuple[str, ...]:
    """The backends to try for tensors of a device type, the best first."""
    if device_type == "cpu":
        return ("cpu", "reference")
    # ROCm's tensors are of type cuda too; compiled CUDA kernels cannot run there.
    if device_type == "cuda" and torch.version.hip is None:
        return ("cuda", "triton", "reference")
    if device_type in ("cuda", "xpu"):
        return ("triton", "reference")
    return ("reference",)


def choose(
    operator: Operator, like: torch.Tensor, arguments: Sequence[Any], forced: str | None
) -> str:
    """The backend that runs a call: the forced one, else the device's first that can.

    Raises:
        ValueError: `forced` is not a backend.
        RuntimeError: the forced backend cannot run it, with the reason.
    """
    forced = _forced.name if forced is None else forced
    if forced is not None:
        _check_name(forced)
        require(forced, operator, like, arguments)
        return forced
    if not operator.limits:
        first = first_available(operator.name, like.device, like.dtype)
        if _too_large(first, arguments) is None:
            return first
    return _first_without_refusal(preference(like.device.type), operator, like, arguments)


def _first_without_refusal(
    names: Sequence[str], operator: Operator, like: torch.Tensor, arguments: Sequence[Any]
) -> str:
    for name in names:
        if refusal(name, operator, like, arguments) is None:
            return name
    raise AssertionError("the reference refuses nothing")


def operators(name: str) -> Any:
    """The custom operators of a backend, by their names."""
    return getattr(torch.ops, NAME_SPACES[name])


def all_operators() -> list[Any]:
    """The custom operators of every name space."""
    return [getattr(torch.ops, name) for name in dict.fromkeys(NAME_SPACES.values())]


def operators_like(name_space: str, operator: Operator, arguments: Sequence[Any]) -> Any:
    """Those that run an operator in the backward pass of one of `name_space`.

    Its own where it has the kernel, else those of the device's first backend that has.
    """
    like = next(x for x in arguments if isinstance(x, torch.Tensor))
    order = preference(like.device.type)
    own = [name for name in NAMES if NAME_SPACES[name] == name_space]
    return operators(_first_without_refusal([*own, *order], operator, like, arguments))


def deciding_tensor(argument: str, like: object) -> torch.Tensor:
    """`like`, passed as `argument`, if it is a tensor that has one device and dtype."""
    if not isinstance(like, torch.Tensor):
        raise TypeError(f"{argument}: expected a tensor, got {type(like).__name__}")
    if like.is_nested:
        raise TypeError(f"{argument}: expected a dense (strided) tensor, got a nested one")
    return like


def allow_tf32(like: torch.Tensor) -> bool:
    """Whether the user lets float32 products, convolutions too, run in TF32 on CUDA."""
    return like.is_cuda and torch.backends.cuda.matmul.fp32_precision == "tf32"
