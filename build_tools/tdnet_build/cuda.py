"""Decide whether and for which architectures the CUDA sources are compiled."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tdnet_build import BuildError

# What is compiled for 8.0 runs on 8.6 and 8.9 too: nothing in the kernels differs there.
DEFAULT_ARCHITECTURES = "8.0;9.0;10.0;12.0+PTX"
OLDEST_ARCHITECTURE = 8.0
OLDEST_NVCC = (12, 0)  # the first with C++20


@dataclass(frozen=True)
class CudaPlan:
    """The decision about CUDA.

    Attributes:
        nvcc: the compiler, None where none is used.
        architectures: as in TORCH_CUDA_ARCH_LIST, for example "8.0;9.0+PTX"; "" where no CUDA code
            is compiled.
        status: one line saying why CUDA kernels are in or are not.
    """

    nvcc: Path | None
    architectures: str
    status: str

    def without_kernels(self, reason: str) -> CudaPlan:
        return replace(self, architectures="", status=f"not compiled in: {reason}")


def plan_cuda(environ: Mapping[str, str] = os.environ) -> CudaPlan:
    """Decide from TDNET_CUDA (auto, 0 or 1) and the toolkit found.

    Raises:
        BuildError: TDNET_CUDA has another value, or is 1 and CUDA code cannot be compiled here,
            or TORCH_CUDA_ARCH_LIST asks for what nvcc does not know.
    """
    switch = environ.get("TDNET_CUDA") or "auto"
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
    known = _known_to(nvcc)
    asked, of_whom = environ.get("TORCH_CUDA_ARCH_LIST"), ""
    if not asked and (visible := visible_architectures(known, environ)):
        asked, of_whom = visible, ", the GPU found here (TORCH_CUDA_ARCH_LIST names others)"
    architectures = choose_architectures(asked, known)
    _try_compiler(nvcc, architectures, environ)
    status = f"compiled in by nvcc {release[0]}.{release[1]} for {architectures}{of_whom}"
    return CudaPlan(nvcc, architectures, status)


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


def visible_architectures(known: Sequence[str], environ: Mapping[str, str] = os.environ) -> str:
    """Return the architectures of this machine's GPUs that can be compiled for, for example "9.0".

    The driver's nvidia-smi tells. "" where it sees no GPU, or one too old for the kernels or too
    new for this nvcc: such a GPU may yet run the PTX of the default list.
    """
    program = shutil.which("nvidia-smi", path=environ.get("PATH", ""))
    if program is None:
        return ""
    command = [program, "--query-gpu=compute_cap", "--format=csv,noheader"]
    output = subprocess.run(command, capture_output=True, text=True).stdout
    found = sorted(set(re.findall(r"^\d+\.\d$", output, re.MULTILINE)), key=float)
    usable = [
        entry
        for entry in found
        if float(entry) >= OLDEST_ARCHITECTURE and f"sm_{_digits(entry)}" in known
    ]
    return ";".join(usable) if usable == found else ""


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
    """Link an empty kernel: a toolkit without headers or beside a too new g++ fails here."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cu")
        source.write_text("__global__ void probe() {}\n")
        command = [str(nvcc), *host_compiler_flags(environ), "-std=c++20"]
        command += architecture_flags(architectures.partition(";")[0])
        command += ["-shared", "-Xcompiler=-fPIC", str(source), "-o", str(Path(folder, "probe.so"))]
        result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        output = (result.stderr + result.stdout).strip().splitlines() or ["no message"]
        first_error = next((line for line in output if "error" in line), output[0])
        raise _NoCudaError(f"{nvcc} cannot compile an empty kernel: {first_error}")


def host_compiler(environ: Mapping[str, str] = os.environ) -> str:
    """Return the C++ compiler named by CXX, "" where nvcc may choose."""
    words = [word for word in shlex.split(environ.get("CXX", "")) if not word.startswith("-")]
    return words[-1] if words else ""  # the last: "ccache g++"


def host_compiler_flags(environ: Mapping[str, str] = os.environ) -> list[str]:
    name = host_compiler(environ)
    return ["-ccbin", name] if name else []
