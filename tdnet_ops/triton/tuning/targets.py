"""Compile the kernels for a GPU that need not be here.

    with targets.compiling_for("cuda-90") as compilation:
        spatial_pool(torch.empty(1, 64, 97, 193), 4)
    print([compiled.resources(kernel) for kernel, _ in compilation.launched])

Inside the block a launch compiles for that GPU and runs nothing: results are not filled in.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget

from tdnet_ops.triton.shared.choices import INTERPRETED, Choices
from tdnet_ops.triton.shared.launch import choosing_from
from tdnet_ops.triton.tuning.table import Table

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


def _amd(binary: bytes) -> tuple[int, int]:
    """Registers of a thread, and bytes that it spills, from the MessagePack notes of an ELF file.

    Scalar registers spill to lanes of vector registers; this is memory.
    """

    def number(name: bytes) -> int:
        place = binary.index(name) + len(name)
        first = binary[place]
        # A small number is one byte; longer ones come after a byte that says how long.
        size = {0xCC: 1, 0xCD: 2, 0xCE: 4}.get(first, 0)
        return int.from_bytes(binary[place + 1 : place + 1 + size], "big") if size else first

    return number(b".vgpr_count"), number(b".private_segment_fixed_size")


def _nvidia(binary: bytes) -> tuple[int, int]:
    """The like from a cubin. The stack holds nothing else: kernels have no arrays, call nothing."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        command = [str(tool), "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found is not None, usage
    return int(found[1]), int(found[2])


class _Utils:
    def __init__(self, backend: str, most_shared: int) -> None:
        self._look = _amd if backend == "hip" else _nvidia
        self._most_shared = most_shared

    def load_binary(self, _: str, binary: bytes, *__: Any) -> tuple[int, int, int, int, int]:
        """A module, a function, its registers, spilled registers, most threads; as Triton's."""
        registers, spilled = self._look(binary)
        return 1, 1, registers, spilled // 4, 1024

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
        self.utils = _Utils(backend, MOST_SHARED[name])

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


class Compilation(NamedTuple):
    """What was compiled so far."""

    launched: list[tuple[Any, str]]
    """Of every launch a triton.compiler.CompiledKernel, see compiled.py, and its shape class."""
    choices: Choices


@contextlib.contextmanager
def compiling_for(name: str, table: Table | None = None) -> Iterator[Compilation]:
    """Launches inside the block compile for the GPU `name`; they take CPU tensors and run nothing.

    Args:
        name: one of NAMES.
        table: by default the one that ships.

    Raises:
        ValueError: not one of NAMES.
        RuntimeError: TRITON_INTERPRET is set: nothing is compiled.
    """
    if name not in MOST_SHARED:
        raise ValueError(f"name: expected one of {list(NAMES)}, got {name!r}")
    if INTERPRETED:
        raise RuntimeError("TRITON_INTERPRET is set: nothing is compiled")
    driver = triton.runtime.driver
    driver.set_active(_Driver(name))
    launched: list[tuple[Any, str]] = []
    choices = Choices(table or Table.read(), lambda *launch: launched.append(launch))
    try:
        with choosing_from(choices):
            yield Compilation(launched, choices)
    finally:
        with contextlib.suppress(RuntimeError):  # There is no driver to go back to without a GPU.
            driver.reset_active()
