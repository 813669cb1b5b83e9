"""Find an installed torch without importing it.

The stable ABI needs only torch's headers and `libtorch_cpu.so`, whatever Python they were installed
for. So the build may use a torch that the build environment of pip or uv cannot import.
"""

from __future__ import annotations

import os
import re
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tdnet_build import BuildError

OLDEST_TORCH = (2, 10)
TORCH_TARGET = f"{OLDEST_TORCH[0]}.{OLDEST_TORCH[1]}"
TORCH_REQUIREMENT = f"torch>={TORCH_TARGET}"


@dataclass(frozen=True)
class Torch:
    """An installed torch: its package folder and its version, for example "2.13.0+cpu"."""

    folder: Path
    version: str

    @property
    def include(self) -> Path:
        return self.folder / "include"

    @property
    def library(self) -> Path:
        return self.folder / "lib" / "libtorch_cpu.so"


def site_folders(environ: Mapping[str, str] = os.environ) -> Iterator[Path]:
    """Yield the folders in which torch may be installed, the environment installed into first.

    pip's isolated build runs the Python of the environment it installs into and only hides its
    packages, so `sysconfig` and `site` still name them. uv builds in an environment of its own; the
    one installed into is then named by the variables of an activated environment, by PATH, or it is
    the `.venv` of the working directory.
    """
    for name in ("purelib", "platlib"):
        yield Path(sysconfig.get_path(name))
    yield from map(Path, site.getsitepackages())
    yield from (Path(folder) for folder in sys.path if folder)
    if site.ENABLE_USER_SITE:
        yield Path(site.getusersitepackages())
    roots = [Path(environ[name]) for name in ("VIRTUAL_ENV", "CONDA_PREFIX") if environ.get(name)]
    roots.append(Path.cwd() / ".venv")
    roots += [Path(folder).parent for folder in environ.get("PATH", "").split(os.pathsep) if folder]
    for root in roots:
        yield from sorted(root.glob("lib/python3.*/site-packages"))


def torch_to_build_with(environ: Mapping[str, str] = os.environ) -> Torch:
    """Return the torch, or libtorch, in the folder that TDNET_TORCH_DIR names, else one found.

    Raises:
        BuildError: there is none.
    """
    if not environ.get("TDNET_TORCH_DIR"):
        found = find_torch()
        if found is None:
            raise BuildError(f"no {TORCH_REQUIREMENT} found to build with; install it first")
        return found
    named = Torch(Path(environ["TDNET_TORCH_DIR"]).absolute(), "of TDNET_TORCH_DIR")
    if not named.library.is_file():
        raise BuildError(f"TDNET_TORCH_DIR: expected the folder of a torch, no {named.library}")
    return named


def find_torch(folders: Iterable[Path] | None = None) -> Torch | None:
    """Return the first torch new enough in `folders` (default: `site_folders()`), or None."""
    for folder in site_folders() if folders is None else folders:
        version_file = folder / "torch" / "version.py"
        if not version_file.is_file():
            continue
        match = re.search(r"^__version__ = '([^']+)'", version_file.read_text(), re.MULTILINE)
        if match is None:
            continue
        release = re.match(r"(\d+)\.(\d+)", match[1])
        if release and (int(release[1]), int(release[2])) >= OLDEST_TORCH:
            return Torch(folder / "torch", match[1])
    return None
