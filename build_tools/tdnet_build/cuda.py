"""Decide whether and for which architectures the CUDA sources are compiled."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

DEFAULT_ARCHITECTURES = "8.0;8.6;9.0;10.0;12.0+PTX"
OLDEST_NVCC = (12, 0)  # the first with C++20
CUDA_FLAGS = ["-std=c++20"]


class BuildError(Exception):
    """A reason, in one line, why the build cannot go on."""


@dataclass(frozen=True)
class CudaPlan:
    """The decision about CUDA.

    Attributes:
        toolkit: the toolkit's root folder, None where no CUDA code is compiled.
        architectures: as in TORCH_CUDA_ARCH_LIST, for example "8.0;9.0+PTX"; "" without CUDA.
        status: one line saying why CUDA kernels are in or are not.
    """

    toolkit: Path | None
    architectures: str
    status: str

    @property
    def nvcc(self) -> Path:
        if self.toolkit is None:
            raise BuildError("there is no nvcc in a build without CUDA")
        return self.toolkit / "bin" / "nvcc"


def plan_cuda(environ: Mapping[str, str] = os.environ) -> CudaPlan:
    """Decide from TDNET_CUDA (auto, 0 or 1) and the toolkit found.

    Raises:
        BuildError: TDNET_CUDA has another value, or is 1 and CUDA code cannot be compiled here,
            or TORCH_CUDA_ARCH_LIST asks for what nvcc does not know.
    """
    switch = environ.get("TDNET_CUDA", "auto")
    if switch not in ("auto", "0", "1"):
        raise BuildError(f"TDNET_CUDA={switch!r} is not one of auto, 0, 1")
    if switch == "0":
        return CudaPlan(None, "", "not compiled in: switched off by TDNET_CUDA=0")
    try:
        return _plan_with_toolkit(environ)
    except _NoCudaError as reason:
        if switch == "1":
            raise BuildError(f"TDNET_CUDA=1 cannot be met: {reason}") from None
        return CudaPlan(None, "", f"not compiled in: {reason}")


class _NoCudaError(Exception):
    """A reason that leaves CUDA out of an automatic build and stops a forced one."""


def _plan_with_toolkit(environ: Mapping[str, str]) -> CudaPlan:
    toolkit = find_toolkit(environ)
    if toolkit is None:
        raise _NoCudaError("no nvcc (looked at CUDA_HOME, CUDA_PATH, PATH and /usr/local/cuda)")
    nvcc = toolkit / "bin" / "nvcc"
    release = _nvcc_release(nvcc)
    if release < OLDEST_NVCC:
        needed = ".".join(map(str, OLDEST_NVCC))
        raise _NoCudaError(f"{nvcc} is release {release[0]}.{release[1]}, C++20 needs {needed}")
    architectures = choose_architectures(environ.get("TORCH_CUDA_ARCH_LIST"), _known_to(nvcc))
    _try_compiler(nvcc, architectures, environ)
    status = f"compiled in by nvcc {release[0]}.{release[1]} for {architectures}"
    return CudaPlan(toolkit, architectures, status)


def find_toolkit(environ: Mapping[str, str] = os.environ) -> Path | None:
    """Return the root of the CUDA toolkit (the folder with bin/nvcc), or None.

    CUDA_HOME and CUDA_PATH go first, then nvcc on PATH, then /usr/local/cuda. The nvcc on PATH may
    be a script that runs the real one elsewhere, so nvcc itself is asked for its root.
    """
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if environ.get(name) and Path(environ[name], "bin", "nvcc").is_file():
            return Path(environ[name])
    nvcc = shutil.which("nvcc", path=environ.get("PATH", ""))
    if nvcc:
        dry_run = subprocess.run(
            [nvcc, "--dryrun", "-c", "-x", "cu", os.devnull], capture_output=True, text=True
        )
        match = re.search(r"^#\$ (?:TOP|_HERE_/\.\.)=(.+)$", dry_run.stdout + dry_run.stderr, re.M)
        if match and Path(match[1].strip(), "bin", "nvcc").is_file():
            return Path(match[1].strip()).resolve()
    default = Path("/usr/local/cuda")
    return default if (default / "bin" / "nvcc").is_file() else None


def choose_architectures(asked: str | None, known: Sequence[str]) -> str:
    """Return the architecture list to compile for.

    Args:
        asked: TORCH_CUDA_ARCH_LIST, entries like 8.0, 9.0a, 12.0+PTX parted by ";", "," or spaces;
            None or "" for the default list, of which this nvcc's unknown entries are left out.
        known: what nvcc can generate, for example ["sm_80", "sm_90"].

    Raises:
        BuildError: an asked entry is malformed or unknown to nvcc.
    """
    entries = [entry for entry in re.split(r"[;,\s]+", asked or DEFAULT_ARCHITECTURES) if entry]
    chosen = []
    for entry in entries:
        if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", entry):
            raise BuildError(
                f"TORCH_CUDA_ARCH_LIST has {entry!r}; expected entries like 8.0, 9.0a or 12.0+PTX"
            )
        if f"sm_{_digits(entry).rstrip('af')}" in known:
            chosen.append(entry)
        elif asked:
            raise BuildError(f"TORCH_CUDA_ARCH_LIST has {entry}; this nvcc knows {' '.join(known)}")
    if not chosen:
        raise _NoCudaError(f"this nvcc knows none of {DEFAULT_ARCHITECTURES}")
    if not asked and not chosen[-1].endswith("+PTX"):
        chosen[-1] += "+PTX"
    return ";".join(chosen)


def architecture_flags(architectures: str) -> list[str]:
    """Translate "8.0;9.0+PTX" to nvcc's -gencode flags."""
    flags = []
    for entry in architectures.split(";"):
        number = _digits(entry)
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if entry.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def runtime_folder(toolkit: Path) -> Path:
    """Return the folder with libcudart_static.a: lib64, or lib from conda and pip."""
    for name in ("lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib"):
        if (toolkit / name / "libcudart_static.a").is_file():
            return toolkit / name
    raise _NoCudaError(f"no libcudart_static.a in {toolkit}")


def _digits(entry: str) -> str:
    return entry.removesuffix("+PTX").replace(".", "")


def _nvcc_release(nvcc: Path) -> tuple[int, int]:
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    match = re.search(r"release (\d+)\.(\d+)", version)
    if match is None:
        raise _NoCudaError(f"{nvcc} --version names no release")
    return int(match[1]), int(match[2])


def _known_to(nvcc: Path) -> list[str]:
    return subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True).stdout.split()


def _try_compiler(nvcc: Path, architectures: str, environ: Mapping[str, str]) -> None:
    """Compile an empty kernel: a toolkit without headers or beside a too new g++ fails here."""
    runtime_folder(nvcc.parents[1])
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cu")
        source.write_text("__global__ void probe() {}\n")
        command = [str(nvcc), *host_compiler_flags(environ), *CUDA_FLAGS]
        command += architecture_flags(architectures)
        command += ["-c", str(source), "-o", str(Path(folder, "probe.o"))]
        result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        output = (result.stderr + result.stdout).strip().splitlines() or ["no message"]
        first_error = next((line for line in output if "error" in line), output[0])
        raise _NoCudaError(f"{nvcc} cannot compile an empty kernel: {first_error}")


def host_compiler_flags(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return -ccbin for a C++ compiler named by CXX; without it nvcc chooses."""
    words = [word for word in shlex.split(environ.get("CXX", "")) if not word.startswith("-")]
    return ["-ccbin", words[-1]] if words else []  # the last: "ccache g++"
