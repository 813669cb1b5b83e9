"""What is compiled in, and what runs here."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

import torch

from tdnet_ops import _library, backends
from tdnet_ops.operators import OPERATORS


def describe(device: torch.device | str) -> str:
    """One line for people: the backend that float32 tensors on this device run on."""
    device = torch.device(device)
    like = torch.empty(0, device=device)
    chosen = backends.choose(OPERATORS["attention_propagate"], like, (), None)
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


def _readiness(name: str) -> str:
    devices = {"cuda": "cuda", "triton": "xpu" if torch.xpu.is_available() else "cuda"}
    device = torch.device(devices.get(name, "cpu"))
    return backends.why_unavailable(name, "attention_propagate", device, torch.float32) or "ready"


def build_info() -> dict[str, Any]:
    """What was compiled, what is in use, and for each backend why it can or cannot run here.

    Returns:
        A dictionary of plain strings, lists and dictionaries: versions, the path of the library for
        C++ programs, the torch ABI target, CPU instruction sets compiled and in use, CUDA
        architectures and status, Triton's version, and `backends`: name -> "ready" or the reason
        why float32 tensors cannot run on it, and `kernels`: operator -> the backends that have a
        kernel of it.
    """
    return {
        "version": _library.VERSION,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torch_cuda": torch.version.cuda,
        "library": str(_library.LIBRARY),
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
        "backends": {name: _readiness(name) for name in backends.NAMES},
        "kernels": {
            operator: [name for name in backends.NAMES if backends.has_kernel(name, operator)]
            for operator in OPERATORS
        },
    }
