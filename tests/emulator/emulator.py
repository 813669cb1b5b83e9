"""Build the CUDA kernels for the emulator, load them, and set how it runs them.

The library registers csrc/cuda as `torch.ops.tdnet_emulator.*` for CPU tensors. A process can load
one kind of it.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
RUNTIME = FOLDER / "runtime"
sys.path.append(str(ROOT / "build_tools"))

from tdnet_build import native  # noqa: E402
from tdnet_build.find_torch import find_torch  # noqa: E402
from tdnet_build.plan import Plan, find_cxx, sanitizer_runtimes  # noqa: E402

COPIES = ("lazy", "eager", "random")
MOST_SHARED, LITTLE_SHARED = 227 << 10, 99 << 10  # of the largest GPUs, and of many


KINDS = ("plain", "address", "thread", "coverage", "ucontext")


def _plan() -> Plan:
    """Beside the torch that `import torch` finds; not imported, for the sake of short processes."""
    torch = find_torch(Path(folder) for folder in sys.path if folder)
    if torch is None:
        raise RuntimeError("no torch on sys.path")
    asked = {"TDNET_CUDA": "0", "TDNET_SANITIZE": "", "TDNET_TORCH_DIR": str(torch.folder)}
    return Plan.from_environment({**os.environ, **asked})


def _under_sanitizer(kind: str) -> bool:
    runtimes = environment(kind).get("LD_PRELOAD")
    return runtimes is not None and os.environ.get("LD_PRELOAD") == runtimes


def build(library: str = "operators", kind: str = "plain") -> Path:
    """Bring an emulated library up to date by CMakeLists.txt.

    Args:
        library: "operators", which becomes torch.ops.tdnet_emulator, or "examples".
        kind: "plain", "address" (with AddressSanitizer and UndefinedBehaviorSanitizer), "thread",
            "coverage" or "ucontext". A process under a sanitizer takes what is there: whoever
            started it has built it.
    """
    folder = ROOT / "build" / "emulator"
    if not _under_sanitizer(kind):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder.parent / "emulator.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # several test processes may want the same library
            native.configure(_plan(), folder, "-DTDNET_EMULATOR=ON")
            native.build(folder, f"{library}_{kind}")
    return folder / kind / f"{library}.so"


def environment(kind: str) -> dict[str, str]:
    """What a process must be started with to load the library."""
    if kind not in ("address", "thread"):
        return {}
    runtimes = {"address": ("libasan.so", "libubsan.so"), "thread": ("libtsan.so",)}[kind]
    return {
        "LD_PRELOAD": sanitizer_runtimes(find_cxx(), *runtimes),
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


def import_library(path: Path) -> ModuleType:
    """What it offers: runtime/bindings.h, and of the examples define() in kernels/*.cu."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_examples(kind: str = "plain") -> ModuleType:
    return import_library(build("examples", kind))


def load_operators(kind: str = "plain") -> ModuleType:
    """Build and load torch.ops.tdnet_emulator."""
    import torch

    path = build("operators", kind)
    torch.ops.load_library(str(path))
    return import_library(path)
