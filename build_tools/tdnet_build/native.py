"""Run `CMakeLists.txt` by cmake and ninja."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tdnet_build import BuildError
from tdnet_build.plan import Plan, log

ROOT = Path(__file__).resolve().parents[2]
MODULE = "_C.abi3.so"
RECORD = "configured.json"


@dataclass(frozen=True)
class Tool:
    """A program of the build: its name, the oldest version that will do, what pip calls it."""

    name: str
    oldest: tuple[int, int]
    requirement: str

    def find(self, environ: Mapping[str, str] = os.environ) -> Path | None:
        """Return the first that runs and is new enough, on PATH or beside this Python, or None.

        pip's build environment hides the packages of the one that it installs into, but leaves its
        programs on PATH: a cmake that is a Python script is there and does not run.
        """
        for folder in [
            *environ.get("PATH", "").split(os.pathsep),
            str(Path(sys.executable).parent),
        ]:
            path = shutil.which(self.name, path=folder) if folder else None
            if path and self._version(path) >= self.oldest:
                return Path(path).absolute()
        return None

    @staticmethod
    def _version(path: str) -> tuple[int, ...]:
        result = subprocess.run([path, "--version"], capture_output=True, text=True)
        match = re.search(r"(\d+)\.(\d+)", result.stdout) if result.returncode == 0 else None
        return (int(match[1]), int(match[2])) if match else ()

    def found(self, before: str | None = None) -> Path:
        """Return `before` if it still runs, else the first that `find` finds.

        Raises:
            BuildError: there is none.
        """
        if before and shutil.which(before) and self._version(before) >= self.oldest:
            return Path(before)
        path = self.find()
        if path is None:
            raise BuildError(
                f"no {self.requirement} that runs on PATH or beside {sys.executable}; install it "
                f"first, for example by pip install '{self.requirement}'"
            )
        return path


CMAKE = Tool("cmake", (3, 22), "cmake>=3.22")
NINJA = Tool("ninja", (1, 0), "ninja")


def count_jobs(environ: Mapping[str, str] = os.environ) -> int:
    """Return how many compilers may run at a time: MAX_JOBS, else one a core."""
    jobs = environ.get("MAX_JOBS") or str(len(os.sched_getaffinity(0)))
    if not jobs.isdecimal() or int(jobs) < 1:
        raise BuildError(f"MAX_JOBS={jobs!r} is not a positive number")
    return int(jobs)


def configure(plan: Plan, folder: Path, *options: str) -> None:
    """Make `folder` ready for ninja, which configures again by itself where sources changed."""
    programs = {
        "source": str(ROOT),
        "nvcc": str(plan.cuda.nvcc),
        **{name: os.environ.get(name, "") for name in ("CXXFLAGS", "CUDAFLAGS", "LDFLAGS")},
        "cxx": plan.cxx,
    }
    if configured(folder).get("programs", programs) != programs:
        shutil.rmtree(folder)  # CMake keeps to the compilers and flags that it saw first
    cmake, ninja = (str(tool_of(folder, tool)) for tool in (CMAKE, NINJA))
    command = [cmake, "-S", str(ROOT), "-B", str(folder), "-G", "Ninja"]
    command += [f"-DCMAKE_MAKE_PROGRAM={ninja}", f"-DTDNET_PLAN={folder / 'plan.cmake'}"]
    command += options
    folder.mkdir(parents=True, exist_ok=True)
    plan.write(folder / "plan.cmake")
    now = {"programs": programs, "command": command, "cmake": cmake, "ninja": ninja}
    if configured(folder) != now or not (folder / "build.ninja").is_file():
        (folder / RECORD).unlink(missing_ok=True)
        run(command)
        (folder / RECORD).write_text(json.dumps(now))


def configured(folder: Path) -> dict[str, Any]:
    """Return what `folder` was configured with; nothing where it was not."""
    record = folder / RECORD
    return json.loads(record.read_text()) if record.is_file() else {}


def tool_of(folder: Path, tool: Tool) -> Path:
    """Return the tool that `folder` began with, where it still runs, else the first found.

    In pip's build environment others may be the first found, and those of another version compile
    everything anew: CMake writes flags in another order, ninja does not read the other's log.
    """
    return tool.found(configured(folder).get(tool.name))


def build(folder: Path, target: str) -> None:
    """Bring a target of a configured folder up to date."""
    run([str(tool_of(folder, NINJA)), "-C", str(folder), "-j", str(count_jobs()), target])


def run(command: Sequence[str]) -> None:
    """Run cmake or ninja and pass its messages on.

    Raises:
        BuildError: it failed.
    """
    failed = ""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, file=sys.stderr, end="", flush=True)
            match = re.match(r"FAILED: (?:\[code=\d+\] )?\S*\.dir/(\S+)\.o\b", line)
            failed = failed or (f"{match[1]} does not compile" if match else "")
    if process.returncode != 0:
        name = Path(command[0]).name
        raise BuildError(failed or f"{name} failed with status {process.returncode}, see above")


def build_libraries(folder: Path) -> tuple[Path, Path]:
    """Build the module and the library that it loads in `folder`, where what is current stays.

    Raises:
        BuildError: something needed is missing or does not compile.
    """
    plan = Plan.from_environment()
    log(f"torch {plan.torch.version} in {plan.torch.folder}, {count_jobs()} job(s) in {folder}")
    configure(plan, folder)
    if plan.cuda.architectures:
        try:
            build(folder, "cuda")
        except BuildError as error:
            if os.environ.get("TDNET_CUDA") == "1":
                raise
            plan = plan.without_kernels_of_cuda(str(error))
    log(f"CUDA kernels {plan.cuda.status}")
    plan.write(folder / "plan.cmake")
    build(folder, "_C")
    if plan.sanitizers:
        log(f"run with {plan.preload()} python ...")
    return folder / MODULE, folder / plan.library
