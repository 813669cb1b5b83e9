"""Build the CUDA kernels for the emulator, load them, and set how it runs them.

The library registers csrc/cuda as `torch.ops.tdnet_emulator.*` for CPU tensors. A process can load
one kind of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
RUNTIME = FOLDER / "runtime"
sys.path.append(str(ROOT / "build_tools"))

from tdnet_build import extension  # noqa: E402
from tdnet_build.find_torch import Torch, find_torch  # noqa: E402

COPIES = ("lazy", "eager", "random")
MOST_SHARED, LITTLE_SHARED = 227 << 10, 99 << 10  # of the largest GPUs, and of many


@dataclass(frozen=True)
class _Kind:
    """How to compile a library. Objects lie in the folder of the kind whose flags they have."""

    flags: tuple[str, ...]
    kernels: str  # the kind of kernels
    host: str  # and of launchers and the runtime
    runtime: tuple[str, ...] = ()  # flags of the runtime alone


_ADDRESS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
_KINDS = {
    "plain": _Kind(("-O2",), "plain", "plain"),
    # With UndefinedBehaviorSanitizer too.
    "address": _Kind(("-O1", *_ADDRESS, "-fno-sanitize=vptr"), "address", "address"),
    # ThreadSanitizer watches kernels alone: it would misunderstand the runtime, which in turn tells
    # it what fibers are.
    "thread": _Kind(
        ("-O1", "-fsanitize=thread"), "thread", "plain", ("-DTDNET_EMULATOR_THREAD_SANITIZER",)
    ),
    # Counts what runs, see covered.py.
    "coverage": _Kind(("-O1", "--coverage"), "coverage", "coverage"),
    # Fibers as on machines other than x86-64.
    "ucontext": _Kind(("-O2",), "plain", "plain", ("-DTDNET_EMULATOR_UCONTEXT",)),
}
KINDS = tuple(_KINDS)


def _torch() -> Torch:
    """The torch that `import torch` finds; it is not imported, for the sake of short processes."""
    found = find_torch(Path(folder) for folder in sys.path if folder)
    if found is None:
        raise RuntimeError("no torch on sys.path")
    return found


def _command(kind: str) -> list[str]:
    settings = extension.Settings.from_environment()
    return [
        *shlex.split(settings.cxx),
        *("-std=c++20", "-x", "c++", "-fPIC", "-fvisibility=hidden", "-g1"),
        # Kernels look at the same bytes as numbers and as vectors, as CUDA allows.
        "-fno-strict-aliasing",
        *settings.warnings(),
        "-Wno-unknown-pragmas",
        *_KINDS[kind].flags,
        "-DTDNET_EMULATOR",
        *extension.ABI_DEFINITIONS,
        *("-include", str(RUNTIME / "emulator.h")),
        *extension.include_flags(_torch()),
    ]


def _sources(library: str) -> list[Path]:
    """Of "operators", all kernels and launchers of csrc/cuda; of "examples", those of kernels/."""
    if library == "examples":
        return sorted((FOLDER / "kernels").glob("*.cu"))
    return [RUNTIME / "library.cpp", *extension.cuda_sources()]


def build(library: str = "operators", kind: str = "plain") -> Path:
    """Compile and link an emulated library, "operators" or "examples"; what is current stays.

    Args:
        library: "operators", which becomes torch.ops.tdnet_emulator, or "examples".
        kind: "plain", "address" (with AddressSanitizer and UndefinedBehaviorSanitizer), "thread",
            "coverage" or "ucontext".
    """
    root, how = ROOT / "build" / "emulator", _KINDS[kind]
    for name in KINDS:
        (root / name).mkdir(parents=True, exist_ok=True)
    target = root / kind / f"{library}.so"
    sources = _sources(library)
    runtime = [path for path in sorted(RUNTIME.glob("*.cpp")) if path.name != "library.cpp"]
    jobs = [
        (_command(how.kernels), how.kernels, [path for path in sources if path.suffix == ".cu"]),
        (_command(how.host), how.host, [path for path in sources if path.suffix != ".cu"]),
        ([*_command(how.host), *how.runtime], kind, runtime),
    ]
    with (root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several test processes may want the same library
        with ThreadPoolExecutor(extension.Settings.from_environment().jobs) as pool:
            compiling = [
                pool.submit(extension.compile_object, command, source, root / folder)
                for command, folder, of in jobs
                for source in of
            ]
            objects = [job.result() for job in compiling]
        if not target.is_file() or any(
            path.stat().st_mtime_ns > target.stat().st_mtime_ns for path in objects
        ):
            _link(kind, objects, target)
    return target


def _link(kind: str, objects: Sequence[Path], target: Path) -> None:
    settings = extension.Settings.from_environment()
    instruments = [flag for flag in _KINDS[kind].flags if flag.startswith(("-fsan", "--cov"))]
    lib = _torch().lib
    # A running process may have the old file mapped: replace it, do not write into it.
    new = target.with_suffix(".new")
    extension.run(
        [
            *shlex.split(settings.cxx),
            *("-shared", *instruments, *map(str, objects), "-o", str(new)),
            *(f"-L{lib}", "-Wl,--as-needed", "-ltorch_cpu", f"-Wl,-rpath,{lib}"),
        ]
    )
    new.replace(target)


def environment(kind: str) -> dict[str, str]:
    """What a process must be started with to load the library."""
    if kind not in ("address", "thread"):
        return {}
    runtimes = {"address": ("libasan.so", "libubsan.so"), "thread": ("libtsan.so",)}[kind]
    cxx = shlex.split(extension.Settings.from_environment().cxx)
    paths = [
        subprocess.run(
            [*cxx, f"-print-file-name={runtime}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for runtime in runtimes
    ]
    return {
        "LD_PRELOAD": ":".join(paths),
        "OMP_NUM_THREADS": "1",
        # Python and torch keep memory to the end of the process.
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "TSAN_OPTIONS": "exitcode=66",
    }


def run_python(*arguments: object, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a program that can import the modules beside this one, whatever PYTHONSAFEPATH says."""
    path = os.pathsep.join(filter(None, [str(FOLDER), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, **environ},
    )


class Statistics(ctypes.Structure):
    """Counts since the library was loaded or they were reset."""

    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            "launches",
            "blocks",
            "switches",
            "barriers",
            "collectives",
            "matrix_products",
            "matrix_loads",
            "bank_conflicts",
            "copies",
        )
    )


@dataclass(frozen=True)
class Emulator:
    """A loaded library."""

    library: ctypes.CDLL

    @classmethod
    def load(cls, path: Path) -> Emulator:
        library = ctypes.CDLL(str(path))
        library.tdnet_emulator_error.restype = ctypes.c_void_p
        return cls(library)

    def set(
        self,
        seed: int = 0,
        copies: str = "lazy",
        most_shared: int = MOST_SHARED,
        multiprocessors: int = 8,
        dropped: tuple[str, int] = ("", 0),
    ) -> None:
        """Choose the order of threads and blocks, and when asynchronous copies land.

        Args:
            seed: 0 runs threads and blocks in order; an odd seed changes threads at every warp
                collective, an even one only where a thread must wait.
            copies: "lazy" at the wait, "eager" at once, "random" either.
            most_shared: bytes of dynamic shared memory that a block may have.
            multiprocessors: of the device. With 1, few calls split their keys to fill it.
            dropped: end of a path, and line, of a barrier, a __syncwarp or a wait for copies that
                is to do nothing, as if it had been forgotten.
        """
        file, line = dropped
        self.library.tdnet_emulator_set(
            ctypes.c_uint64(seed),
            COPIES.index(copies),
            most_shared,
            multiprocessors,
            file.encode(),
            line,
        )

    def error(self) -> str:
        """What the last launch did wrong; "" if nothing."""
        return ctypes.string_at(self.library.tdnet_emulator_error()).decode()

    def statistics(self) -> Statistics:
        found = Statistics()
        self.library.tdnet_emulator_get_statistics(ctypes.byref(found))
        return found

    @contextlib.contextmanager
    def counting(self) -> Iterator[Statistics]:
        """Fill in the counts of the block when it ends."""
        found = Statistics()
        self.library.tdnet_emulator_reset_statistics()
        yield found
        self.library.tdnet_emulator_get_statistics(ctypes.byref(found))


def load_examples(kind: str = "plain") -> Emulator:
    return Emulator.load(build("examples", kind))


def load_operators(kind: str = "plain") -> Emulator:
    """Build and load torch.ops.tdnet_emulator."""
    import torch

    path = build("operators", kind)
    torch.ops.load_library(str(path))
    return Emulator.load(path)
