"""Compile and link `tdnet_ops/_C.abi3.so`: one library, the stable ABIs of torch and of Python.

torch's own `BuildExtension` is not used: it imports torch, refuses nvcc beside a CPU-only torch,
and the stable ABI needs nothing of it but an include folder and `libtorch_cpu.so`.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from setuptools import Extension
from setuptools.command.build_ext import build_ext

from tdnet_build.cuda import (
    CUDA_FLAGS,
    BuildError,
    CudaPlan,
    architecture_flags,
    host_compiler_flags,
    plan_cuda,
    runtime_folder,
)
from tdnet_build.find_torch import TORCH_REQUIREMENT, Torch, find_torch

ROOT = Path(__file__).resolve().parents[2]
TORCH_TARGET = "2.10"
ABI_DEFINITIONS = [
    "-DTORCH_TARGET_VERSION=0x020a000000000000",
    "-DTORCH_STABLE_ONLY",
    "-DPy_LIMITED_API=0x030a0000",
]
SANITIZERS = ("address", "undefined")


def log(line: str) -> None:
    """Print one line about the build, where `pip install -v` shows it."""
    print(f"tdnet build: {line}", file=sys.stderr, flush=True)


def cpu_sources() -> list[Path]:
    return sorted([*ROOT.glob("csrc/*.cpp"), *ROOT.glob("csrc/cpu/*.cpp")])


def cuda_sources() -> list[Path]:
    return sorted([*ROOT.glob("csrc/cuda/**/*.cu"), *ROOT.glob("csrc/cuda/**/*.cpp")])


@dataclass(frozen=True)
class Settings:
    """What the environment variables ask for."""

    cxx: str
    jobs: int
    sanitizers: str
    warnings_are_errors: bool

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """Read CXX, MAX_JOBS, TDNET_SANITIZE and TDNET_WERROR.

        Raises:
            BuildError: a value is not understood, or there is no C++ compiler.
        """
        jobs = environ.get("MAX_JOBS") or str(len(os.sched_getaffinity(0)))
        if not jobs.isdecimal() or int(jobs) < 1:
            raise BuildError(f"MAX_JOBS={jobs!r} is not a positive number")
        sanitizers = environ.get("TDNET_SANITIZE", "")
        unknown = [name for name in sanitizers.split(",") if sanitizers and name not in SANITIZERS]
        if unknown:
            raise BuildError(f"TDNET_SANITIZE={sanitizers!r} is not of {', '.join(SANITIZERS)}")
        werror = environ.get("TDNET_WERROR", "0")
        if werror not in ("0", "1"):
            raise BuildError(f"TDNET_WERROR={werror!r} is not one of 0, 1")
        return cls(find_cxx(environ), int(jobs), sanitizers, werror == "1")

    def optimization(self) -> list[str]:
        if not self.sanitizers:
            return ["-O3", "-DNDEBUG"]
        recover = ["-fno-sanitize-recover=undefined"] if "undefined" in self.sanitizers else []
        return [f"-fsanitize={self.sanitizers}", *recover, "-fno-omit-frame-pointer", "-g", "-O1"]

    def warnings(self) -> list[str]:
        return ["-Wall", "-Wextra", *(["-Werror"] if self.warnings_are_errors else [])]


def find_cxx(environ: Mapping[str, str] = os.environ) -> str:
    """Return the C++ compiler: CXX, else the first of g++, c++, clang++ on PATH."""
    candidates = [environ["CXX"]] if environ.get("CXX") else ["g++", "c++", "clang++"]
    for name in candidates:
        if shutil.which(shlex.split(name)[0], path=environ.get("PATH", "")):
            return name
    raise BuildError(f"no C++ compiler on PATH (looked for {', '.join(candidates)})")


def include_flags(torch: Torch) -> list[str]:
    # -isystem: warnings inside torch's headers are not ours.
    folders = [torch.include, python_include()]
    return [f"-I{ROOT / 'csrc'}", *(part for path in folders for part in ("-isystem", str(path)))]


def python_include() -> Path:
    """Return the folder of Python.h.

    Raises:
        BuildError: the Python running the build has no development headers.
    """
    folder = Path(sysconfig.get_path("include"))
    if not (folder / "Python.h").is_file():
        raise BuildError(f"no Python.h in {folder}: install Python's headers (python3-dev)")
    return folder


def string_definitions(version: str, plan: CudaPlan) -> list[str]:
    """Return the four string macros that csrc/library.cpp turns into constants of the module."""
    values = {
        "TDNET_VERSION": version,
        "TDNET_CUDA_ARCHITECTURES": plan.architectures,
        "TDNET_CUDA_STATUS": plan.status,
        "TDNET_TORCH_TARGET": TORCH_TARGET,
    }
    escape = str.maketrans({"\\": "\\\\", '"': '\\"'})
    return [f'-D{name}="{value.translate(escape)}"' for name, value in values.items()]


def cxx_command(settings: Settings, torch: Torch, definitions: Sequence[str]) -> list[str]:
    return [
        *shlex.split(settings.cxx),
        *("-std=c++20", "-fPIC", "-fvisibility=hidden"),
        *settings.optimization(),
        *settings.warnings(),
        *ABI_DEFINITIONS,
        *definitions,
        *include_flags(torch),
        *shlex.split(os.environ.get("CXXFLAGS", "")),
    ]


def nvcc_command(settings: Settings, torch: Torch, plan: CudaPlan) -> list[str]:
    return [
        str(plan.nvcc),
        *host_compiler_flags(),
        *CUDA_FLAGS,
        *("-O3", "-DNDEBUG", "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall"),
        # A kernel is shaped for its registers: one that spills is a defect.
        "-Xptxas=--warn-on-spills",
        *(["-Werror=all-warnings"] if settings.warnings_are_errors else []),
        *architecture_flags(plan.architectures),
        *ABI_DEFINITIONS,
        *include_flags(torch),
    ]


def link_flags(torch: Torch, plan: CudaPlan) -> list[str]:
    # --as-needed keeps the list of needed libraries to what is called, the same beside every torch.
    flags = ["-Wl,--as-needed", f"-L{torch.lib}", "-ltorch_cpu"]
    if plan.toolkit is not None:
        # The CUDA runtime is linked statically and hidden: torch may bring another one.
        flags += [f"-L{runtime_folder(plan.toolkit)}", "-lcudart_static", "-ldl", "-lrt"]
        flags += ["-lpthread", "-Wl,--exclude-libs,libcudart_static.a"]
    return [*flags, *shlex.split(os.environ.get("LDFLAGS", ""))]


def run(command: Sequence[str]) -> None:
    """Run a compiler and pass its messages on.

    Raises:
        BuildError: it failed.
    """
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.stdout:
        print(result.stdout, file=sys.stderr, end="", flush=True)
    if result.returncode != 0:
        name = Path(command[0]).name
        raise BuildError(f"{name} failed with status {result.returncode} of: {shlex.join(command)}")


def compile_objects(
    nvcc: Sequence[str], cxx: Sequence[str], sources: Sequence[Path], folder: Path, jobs: int
) -> list[Path]:
    """Compile each .cu by `nvcc` and each .cpp by `cxx`, `jobs` at a time; return the objects."""
    with ThreadPoolExecutor(jobs) as pool:
        compiling = [
            pool.submit(compile_object, nvcc if source.suffix == ".cu" else cxx, source, folder)
            for source in sources
        ]
        return [result.result() for result in compiling]


def compile_object(command: Sequence[str], source: Path, folder: Path) -> Path:
    """Compile `source` to an object in `folder`, unless a current one is there."""
    stem = "_".join(source.relative_to(ROOT).parts)
    target, dependencies, record = (folder / f"{stem}{end}" for end in (".o", ".d", ".command"))
    full = [*command, "-MMD", "-MF", str(dependencies), "-c", str(source), "-o", str(target)]
    if is_current(target, dependencies) and record.is_file() and record.read_text() == str(full):
        return target
    record.unlink(missing_ok=True)
    start = time.time_ns()
    run(full)
    os.utime(target, ns=(start, start))  # a source saved meanwhile is newer
    log(f"compiled {source.relative_to(ROOT)}")
    record.write_text(str(full))
    return target


def is_current(target: Path, dependencies: Path) -> bool:
    """Say whether `target` is newer than every file in its Makefile-style dependency list."""
    if not (target.is_file() and dependencies.is_file()):
        return False
    names = dependencies.read_text().replace("\\\n", " ").partition(":")[2]
    made_of = [Path(name) for name in shlex.split(names)]
    made = target.stat().st_mtime_ns
    return all(path.is_file() and path.stat().st_mtime_ns < made for path in made_of)


def without_failed_cuda(error: BuildError) -> CudaPlan:
    """Return the plan without CUDA after its sources failed to compile; TDNET_CUDA=1 fails."""
    if os.environ.get("TDNET_CUDA") == "1":
        raise error
    return CudaPlan(None, "", f"not compiled in: {str(error).partition(' of: ')[0]}")


def build_library(version: str, target: Path, object_folder: Path) -> None:
    """Compile and link `target` from csrc/.

    Raises:
        BuildError: something needed is missing or a compiler failed.
    """
    settings = Settings.from_environment()
    plan = plan_cuda()
    torch = find_torch()
    if torch is None:
        raise BuildError(f"no {TORCH_REQUIREMENT} found to build with; install it first")
    log(f"torch {torch.version} in {torch.folder}, target {TORCH_TARGET}, {settings.jobs} job(s)")

    object_folder.mkdir(parents=True, exist_ok=True)
    objects: list[Path] = []
    if plan.toolkit is not None:
        nvcc = nvcc_command(settings, torch, plan)
        cxx = cxx_command(settings, torch, ["-isystem", str(plan.toolkit / "include")])
        try:
            objects = compile_objects(nvcc, cxx, cuda_sources(), object_folder, settings.jobs)
        except BuildError as error:
            plan = without_failed_cuda(error)
    log(f"CUDA kernels {plan.status}")
    cxx = cxx_command(settings, torch, string_definitions(version, plan))
    objects += compile_objects([], cxx, cpu_sources(), object_folder, settings.jobs)

    target.parent.mkdir(parents=True, exist_ok=True)
    sanitize = [f"-fsanitize={settings.sanitizers}"] if settings.sanitizers else []
    command = [*shlex.split(settings.cxx), "-shared", *sanitize, *map(str, objects)]
    run([*command, "-o", str(target), *link_flags(torch, plan)])
    log(f"linked {target}")
    if settings.sanitizers:
        log(f"run with {sanitizer_preload(settings)} python ...")


def sanitizer_preload(settings: Settings) -> str:
    """Return the LD_PRELOAD assignment that an unsanitized Python needs to load the library."""
    runtimes = {"address": "libasan.so", "undefined": "libubsan.so"}
    paths = []
    for name in settings.sanitizers.split(","):
        command = [*shlex.split(settings.cxx), f"-print-file-name={runtimes[name]}"]
        paths.append(subprocess.run(command, capture_output=True, text=True).stdout.strip())
    return f"LD_PRELOAD={':'.join(paths)}"


class BuildLibrary(build_ext):
    """The `build_ext` command: setuptools decides where the library goes, this module makes it."""

    def build_extension(self, ext: Extension) -> None:
        version = self.distribution.get_version()
        target = Path(self.get_ext_fullpath(ext.name))
        try:
            build_library(version, target, Path(self.build_temp).absolute())
        except BuildError as error:
            raise SystemExit(f"tdnet build failed: {error}") from None
