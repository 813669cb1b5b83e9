"""What can run here and why not: one predicate, `refusal`, both dispatches and explains.

A backend is a set of custom operators with one name space: "cpu" and "cuda" are the compiled
kernels of `torch.ops.tdnet`, "triton" those of `torch.ops.tdnet_triton`, "reference" is plain
PyTorch in `torch.ops.tdnet_reference`. Forward
and backward of an operator stay in its name space, so a forced backend also holds in the backward
pass, whichever thread runs it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import platform
import shutil
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

from tdnet_ops import _library

_Function = TypeVar("_Function", bound=Callable[..., Any])

NAMES = ("cpu", "cuda", "triton", "reference")
_NAME_SPACES = {
    "cpu": "tdnet",
    "cuda": "tdnet",
    "triton": "tdnet_triton",
    "reference": "tdnet_reference",
}


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
        return f"no CUDA kernels were compiled in ({_library.CUDA_STATUS})"
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


# What a process finds on a machine does not change while it runs.
@functools.cache
def _why_not(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    reason = None
    if name == "cpu" and device.type != "cpu":
        reason = f"its kernels take cpu tensors, got {device.type}"
    elif name == "cuda":
        reason = _why_not_cuda(device)
    elif name == "triton":
        reason = _why_not_triton(device.type)
    if reason is None and name != "reference" and dtype == torch.float64:
        reason = "its kernels compute in float32, got float64"
    return reason


# torch.compile takes what these two return as constants. Plain functions: it would trace into one
# that functools.cache has wrapped.
@_constant
def refusal(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a backend cannot run tensors of this device and dtype; None if it can."""
    return _why_not(name, device, dtype)


@_constant
def _first_that_runs(device: torch.device, dtype: torch.dtype) -> str:
    return _first(device, dtype)


@functools.cache
def _first(device: torch.device, dtype: torch.dtype) -> str:
    candidates = preference(device.type)
    return next(name for name in candidates if refusal(name, device, dtype) is None)


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


def choose(operator: str, device: torch.device, dtype: torch.dtype, forced: str | None) -> str:
    """The backend that runs an operator: the forced one, else the device's first that can.

    Raises:
        ValueError: `forced` is not a backend.
        RuntimeError: the forced backend cannot run here, with the reason.
    """
    forced = _forced.name if forced is None else forced
    if forced is None:
        return _first_that_runs(device, dtype)
    _check_name(forced)
    reason = refusal(forced, device, dtype)
    if reason is not None:
        raise RuntimeError(f"backend {forced!r} cannot run {operator}: {reason}")
    return forced


def operator(name: str, argument: str, like: object, forced: str | None) -> Any:
    """The custom operator of the backend that runs tensors such as `like`, passed as `argument`."""
    if not isinstance(like, torch.Tensor):
        raise TypeError(f"{argument}: expected a tensor, got {type(like).__name__}")
    if like.is_nested:
        raise TypeError(f"{argument}: expected a dense (strided) tensor, got a nested one")
    chosen = choose(name, like.device, like.dtype, forced)
    return getattr(getattr(torch.ops, _NAME_SPACES[chosen]), name)


def allow_tf32(like: torch.Tensor) -> bool:
    """Whether the user lets float32 products, convolutions too, run in TF32 on CUDA."""
    return like.is_cuda and torch.backends.cuda.matmul.fp32_precision == "tf32"


def describe(device: torch.device | str) -> str:
    """One line for people: the backend that float32 tensors on this device run on."""
    device = torch.device(device)
    chosen = choose("operators", device, torch.float32, None)
    if chosen == "cpu":
        return f"cpu ({_library.CPU_IN_USE}, {torch.get_num_threads()} threads)"
    if chosen in ("cuda", "triton"):
        return f"{chosen} ({torch.get_device_module(device).get_device_name(device)})"
    return f"reference (plain PyTorch on {device.type})"


def _triton_version() -> str | None:
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return None


def build_info() -> dict[str, Any]:
    """What was compiled, what is in use, and for each backend why it can or cannot run here.

    Returns:
        A dictionary of plain strings, lists and dictionaries: versions, the torch ABI target, CPU
        instruction sets compiled and in use, CUDA architectures and status, Triton's version, and
        `backends`: name -> "ready" or the reason why float32 tensors cannot run on it.
    """
    devices = {"cuda": "cuda", "triton": "xpu" if torch.xpu.is_available() else "cuda"}
    reasons = {
        name: refusal(name, torch.device(devices.get(name, "cpu")), torch.float32) for name in NAMES
    }
    return {
        "version": _library.VERSION,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torch_cuda": torch.version.cuda,
        "torch_abi_target": _library.TORCH_TARGET,
        "compiler": _library.COMPILER,
        "cpu": {
            "compiled": _library.CPU_COMPILED.split(","),
            "in_use": _library.CPU_IN_USE,
            "threads": torch.get_num_threads(),
        },
        "cuda": {
            "architectures": [a for a in _library.CUDA_ARCHITECTURES.split(";") if a],
            "status": _library.CUDA_STATUS,
        },
        "triton": _triton_version(),
        "backends": {name: reason or "ready" for name, reason in reasons.items()},
    }
