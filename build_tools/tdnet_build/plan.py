"""What the native build is made of, and how: decided once, then read by `CMakeLists.txt`.

As a program it writes the file for a build that was not started by setup.py:
`python -m tdnet_build.plan FILE`.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tdnet_build import BuildError
from tdnet_build.cuda import CudaPlan, architecture_flags, host_compiler, plan_cuda
from tdnet_build.find_torch import OLDEST_TORCH, TORCH_TARGET, Torch, torch_to_build_with

SANITIZERS = {"address": "libasan.so", "undefined": "libubsan.so"}


def log(line: str) -> None:
    """Print one line about the build, where `pip install -v` shows it."""
    print(f"tdnet build: {line}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Plan:
    """What the environment variables ask for, and what was found.

    Attributes:
        cxx: the C++ compiler, as in CXX.
        name_space: of torch.ops; the library is named after it too.
        sanitizers: as in TDNET_SANITIZE, "" for none.
        python_include: the folder of Python.h.
    """

    cxx: str
    name_space: str
    sanitizers: str
    warnings_are_errors: bool
    python_include: Path
    torch: Torch
    cuda: CudaPlan

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Plan:
        """Read CXX, TDNET_SANITIZE, TDNET_WERROR and so on, and what `plan_cuda` reads.

        Raises:
            BuildError: a value is not understood, or something needed is missing.
        """
        sanitizers = environ.get("TDNET_SANITIZE", "")
        unknown = [name for name in sanitizers.split(",") if sanitizers and name not in SANITIZERS]
        if unknown:
            raise BuildError(f"TDNET_SANITIZE={sanitizers!r} is not of {', '.join(SANITIZERS)}")
        werror = environ.get("TDNET_WERROR") or "0"
        if werror not in ("0", "1"):
            raise BuildError(f"TDNET_WERROR={werror!r} is not one of 0, 1")
        name_space = environ.get("TDNET_NAME_SPACE") or "tdnet"
        if not re.fullmatch(r"[a-z_][a-z0-9_]*", name_space):
            raise BuildError(f"TDNET_NAME_SPACE={name_space!r} is not of a-z, 0-9 and _")
        return cls(
            cxx=find_cxx(environ),
            name_space=name_space,
            sanitizers=sanitizers,
            warnings_are_errors=werror == "1",
            python_include=find_python_include(),
            torch=torch_to_build_with(environ),
            cuda=plan_cuda(environ),
        )

    @property
    def library(self) -> str:
        """The name of the file that holds the operators."""
        return f"lib{self.name_space}_ops.so"

    def without_kernels_of_cuda(self, reason: str) -> Plan:
        return replace(self, cuda=self.cuda.without_kernels(reason))

    def variables(self) -> dict[str, str]:
        major, minor = OLDEST_TORCH
        return {
            "ENV{CXX}": self.cxx,  # CMake knows how to take "ccache g++" apart
            "TDNET_PYTHON_INCLUDE": str(self.python_include),
            "TDNET_TORCH_INCLUDE": str(self.torch.include),
            "TDNET_TORCH_LIBRARY": str(self.torch.library),
            "TDNET_TORCH_TARGET": TORCH_TARGET,
            "TDNET_TORCH_TARGET_VERSION": f"0x{major:02x}{minor:02x}{0:012x}",
            "TDNET_NAME_SPACE": self.name_space,
            "TDNET_SANITIZE": self.sanitizers,
            "TDNET_WERROR": "1" if self.warnings_are_errors else "0",
            "TDNET_CUDA_ARCHITECTURES": self.cuda.architectures,
            "TDNET_CUDA_ARCHITECTURE_FLAGS": ";".join(architecture_flags(self.cuda.architectures)),
            "TDNET_CUDA_STATUS": self.cuda.status,
            "TDNET_NVCC": str(self.cuda.nvcc or ""),
            "TDNET_CUDA_HOST_COMPILER": host_compiler(),
        }

    def write(self, path: Path) -> None:
        """Write the variables as CMake code; a file that says the same stays as old as it is."""
        text = "".join(f"set({name} [==[{value}]==])\n" for name, value in self.variables().items())
        if not (path.is_file() and path.read_text() == text):
            path.write_text(text)

    def preload(self) -> str:
        """Return the LD_PRELOAD assignment by which an unsanitized Python loads the library."""
        runtimes = [SANITIZERS[name] for name in self.sanitizers.split(",")]
        return f"LD_PRELOAD={sanitizer_runtimes(self.cxx, *runtimes)}"


def find_cxx(environ: Mapping[str, str] = os.environ) -> str:
    """Return the C++ compiler: CXX, else the first of g++, c++, clang++ on PATH."""
    candidates = [environ["CXX"]] if environ.get("CXX") else ["g++", "c++", "clang++"]
    for name in candidates:
        if shutil.which(shlex.split(name)[0], path=environ.get("PATH", "")):
            return name
    raise BuildError(f"no C++ compiler on PATH (looked for {', '.join(candidates)})")


def find_python_include() -> Path:
    """Return the folder of Python.h.

    Raises:
        BuildError: the Python running the build has no development headers.
    """
    folder = Path(sysconfig.get_path("include"))
    if not (folder / "Python.h").is_file():
        raise BuildError(f"no Python.h in {folder}: install Python's headers (python3-dev)")
    return folder


def sanitizer_runtimes(cxx: str, *names: str) -> str:
    """Return the paths of libraries that come with the compiler, parted by colons."""
    commands = [[*shlex.split(cxx), f"-print-file-name={name}"] for name in names]
    return ":".join(
        subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        for command in commands
    )


def main() -> None:
    try:
        plan = Plan.from_environment()
    except BuildError as error:
        raise SystemExit(f"tdnet build failed: {error}") from None
    log(f"torch {plan.torch.version} in {plan.torch.folder}")
    log(f"CUDA kernels {plan.cuda.status}")
    plan.write(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
