"""Compile the kernels for a GPU that need not be here, and read what the compiler made of them.

    with targets.compiling_for("cuda-90") as compiled:
        tdnet_ops.triton.spatial_pool(torch.empty(1, 64, 97, 193), 4)
    print([targets.resources(kernel) for kernel, _ in compiled])

Inside the block a launch compiles for that GPU and runs nothing: results are not filled in.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget

from tdnet_ops.triton import launch

# Bytes of shared memory that a block may have.
MOST_SHARED = {
    "cuda-80": 163 << 10,
    "cuda-86": 99 << 10,
    "cuda-89": 99 << 10,
    "cuda-90": 227 << 10,
    "cuda-100": 227 << 10,
    "cuda-120": 99 << 10,
    "hip-gfx942": 64 << 10,
}
NAMES = tuple(MOST_SHARED)

_numbers = itertools.count(1000)


@dataclass(frozen=True)
class Resources:
    """Of one compiled kernel."""

    kernel: str
    registers: int  # of a thread
    spilled: int  # bytes of a thread, to memory
    shared: int  # bytes of a block
    matrix_instructions: int
    threads: int  # of a block


def resources(compiled: Any) -> Resources:
    """What the compiler made of a kernel, from its machine code."""
    metadata = compiled.metadata
    amd = metadata.target.backend == "hip"
    registers, spilled, matrix = _amd(compiled.asm) if amd else _nvidia(compiled.asm)
    threads = metadata.num_warps * metadata.target.warp_size
    return Resources(metadata.name, registers, spilled, metadata.shared, matrix, threads)


def _amd(asm: Any) -> tuple[int, int, int]:
    text = asm["amdgcn"]

    def number(name: str) -> int:
        return int(re.search(rf"\.{name}:\s*(\d+)", text)[1])  # type: ignore[index]

    # Scalar registers spill to lanes of vector registers; this is memory.
    spilled = number("private_segment_fixed_size")
    return number("vgpr_count"), spilled, len(re.findall(r"\bv_mfma_", text))


def _nvidia(asm: Any) -> tuple[int, int, int]:
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(asm["cubin"])
        file.flush()
        usage, code = (
            subprocess.run(
                [tools / tool, option, file.name], capture_output=True, text=True, check=True
            ).stdout
            for tool, option in (("cuobjdump", "-res-usage"), ("nvdisasm", "-c"))
        )
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found is not None, usage
    # The stack holds nothing else: the kernels have no arrays and call nothing.
    spilled = int(found[2]) if re.search(r"\b(LDL|STL)\b", code) else 0
    return int(found[1]), spilled, len(re.findall(r"\b(?:HMMA|HGMMA|UTC\w*MMA)\b", code))


class _Utils:
    def __init__(self, most_shared: int) -> None:
        self._most_shared = most_shared

    def load_binary(self, *_: Any) -> tuple[int, int, int, int, int]:
        return 1, 1, 0, 0, 1024

    def unload_module(self, _: Any) -> None:
        pass

    def get_device_properties(self, _: int) -> dict[str, int]:
        return {"max_shared_mem": self._most_shared}


class _Driver:
    """What Triton asks of a driver. Launches are counted and go nowhere."""

    def __init__(self, name: str) -> None:
        backend, arch = name.split("-")
        hip = backend == "hip"
        self._target = GPUTarget(backend, arch if hip else int(arch), 64 if hip else 32)
        # Kernels are kept by device.
        self._device = next(_numbers)
        self.utils = _Utils(MOST_SHARED[name])

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return self._device

    def get_current_stream(self, _: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def launcher_cls(self, *_: Any) -> Any:
        return lambda *_: None


@contextlib.contextmanager
def compiling_for(name: str) -> Iterator[list[tuple[Any, str]]]:
    """Launches inside the block compile for the GPU `name`; they take CPU tensors and run nothing.

    Yields:
        The launches so far: a triton.compiler.CompiledKernel, see `resources`, and its shape class.

    Raises:
        ValueError: not one of NAMES.
        RuntimeError: TRITON_INTERPRET is set: nothing is compiled.
    """
    if name not in MOST_SHARED:
        raise ValueError(f"name: expected one of {list(NAMES)}, got {name!r}")
    if launch.INTERPRETED:
        raise RuntimeError("TRITON_INTERPRET is set: nothing is compiled")
    driver = triton.runtime.driver
    driver.set_active(_Driver(name))
    launch.device_class.cache_clear()
    compiled: list[tuple[Any, str]] = []
    launch.launched = compiled.append
    try:
        yield compiled
    finally:
        launch.launched = None
        with contextlib.suppress(RuntimeError):  # There is no driver to go back to without a GPU.
            driver.reset_active()
        launch.device_class.cache_clear()
