"""Makes a kernel of the Hugging Face hub of tdnet_ops: a folder in that hub's layout.

    python hub/assemble.py FOLDER [--compiled]

    FOLDER/build.toml, flake.nix, torch-ext/tdnet_ops/    what their kernel-builder takes
    FOLDER/build/torch-{cpu,cuda,rocm,xpu}/               loadable: Triton and plain PyTorch
    FOLDER/build/torch-stable-abi210-cpu-.../             with --compiled: the C++ kernels too

`kernels.get_local_kernel(Path(FOLDER))` loads the one for the machine. What that hub asks of a
kernel: imports are relative, and operators have a name space of their own, so that several versions
can be loaded. The name is made of the contents, by the build's TDNET_NAME_SPACE.
"""

from __future__ import annotations

import argparse
import ast
import base64
import hashlib
import json
import os
import platform
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PACKAGE = ROOT / "tdnet_ops"
NOT_FOR_THE_HUB = ("bench", "cmake", "triton/tuning/tune.py", "_C.pyi")
sys.path.append(str(ROOT / "build_tools"))

from tdnet_build.find_torch import OLDEST_TORCH, TORCH_TARGET  # noqa: E402
from tdnet_build.native import build_libraries  # noqa: E402

Files = dict[str, bytes]

# The module _C of a build without compiled kernels.
STAND_IN = '''"""In place of the compiled library: its constants, its schemas (csrc/schemas.h)."""

import torch

from ._ops import ops

name_space = ops.name
version = {version!r}
torch_target = {torch_target!r}
cuda_architectures = ""
cuda_status = "not compiled in: this is a build of Python alone"
compiler = cpu_compiled = cpu_in_use = "none"
cuda_most_partials = 0

_library = torch.library.Library(name_space, "DEF")
for _schema in (
{schemas}
):
    _library.define(_schema)
'''
# As kernel-builder makes it.
OPS = """import torch

ops = torch.ops.{name_space}


def add_op_namespace_prefix(op_name: str) -> str:
    return f"{name_space}::{{op_name}}"
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where the kernel goes; made if it is not there")
    parser.add_argument("--compiled", action="store_true", help="build the C++ kernels too")
    arguments = parser.parse_args()
    assemble(arguments.folder, arguments.compiled)


def assemble(folder: Path, compiled: bool = False) -> None:
    """Write the whole kernel."""
    general = settings()
    python = package_files()
    noarch = {**python, "_C.py": stand_in()}
    write(folder / "torch-ext" / "tdnet_ops", noarch)
    for name in ("build.toml", "flake.nix", "CARD.md"):
        shutil.copy(HERE / name, folder)
    for backend in general["backends"]:
        name_space = unique_name(backend, noarch)
        write_variant(folder / "build" / f"torch-{backend}", noarch, name_space, backend, general)
    if compiled:
        name_space = unique_name("cpu", {**python, **source_files()})
        major, minor = OLDEST_TORCH
        variant = f"torch-stable-abi{major}{minor}-cpu-{platform.machine()}-linux"
        files = {**python, **compiled_files(name_space)}
        write_variant(folder / "build" / variant, files, name_space, "cpu", general)


def settings() -> dict[str, Any]:
    """What build.toml says; its values read the same in Python, which has no parser before 3.11."""
    entries = re.findall(r"^(\w+) = (.+)$", (HERE / "build.toml").read_text(), re.MULTILINE)
    return {key: ast.literal_eval(value) for key, value in entries}


def package_files() -> Files:
    """Everything of tdnet_ops but what is compiled, with relative imports."""
    files = {}
    for path in sorted(PACKAGE.rglob("*")):
        name = path.relative_to(PACKAGE).as_posix()
        if path.suffix in (".py", ".json") and not name.startswith(NOT_FOR_THE_HUB):
            text = path.read_text()
            files[name] = (relative(text, name) if path.suffix == ".py" else text).encode()
    return files


def relative(text: str, name: str) -> str:
    """A module's text with relative imports.

    >>> relative("from tdnet_ops.a import b", "operators/c.py")
    'from ..a import b'
    """
    dots = "." * len(Path(name).parts)
    absolute = re.compile(r"^( *)from tdnet_ops(?:\.(\S+))? import", re.MULTILINE)
    return absolute.sub(rf"\1from {dots}\2 import", text)


def stand_in() -> bytes:
    """The module _C of a build without compiled kernels."""
    text = (ROOT / "csrc" / "schemas.h").read_text()
    strings = re.findall(r'm\.def\(\s*((?:"(?:[^"\\]|\\.)*"\s*)+)\)', text)
    schemas = "\n".join(f"    {ast.literal_eval(f'({string})')!r}," for string in strings)
    (version,) = re.findall('__version__ = "(.*)"', (PACKAGE / "version.py").read_text())
    return STAND_IN.format(version=version, torch_target=TORCH_TARGET, schemas=schemas).encode()


def source_files() -> Files:
    """What the compiled files are made of."""
    paths = [ROOT / "CMakeLists.txt", *sorted((ROOT / "csrc").rglob("*"))]
    return {str(path.relative_to(ROOT)): path.read_bytes() for path in paths if path.is_file()}


def compiled_files(name_space: str) -> Files:
    """The module _C and the library with the CPU kernels."""
    os.environ.update(TDNET_NAME_SPACE=name_space, TDNET_CUDA="0")
    with tempfile.TemporaryDirectory(prefix="tdnet-hub-") as folder:
        return {path.name: path.read_bytes() for path in build_libraries(Path(folder))}


def unique_name(backend: str, files: Files) -> str:
    """A name for a build of these files, which another build does not have."""
    contents = hashlib.sha256()
    for name in sorted(files):
        contents.update(name.encode() + b"\0" + hashlib.sha256(files[name]).digest())
    return f"_tdnet_ops_{backend}_{contents.hexdigest()[:12]}"


def write_variant(
    folder: Path, files: Files, name_space: str, backend: str, general: dict[str, Any]
) -> None:
    """Write a build variant with its metadata; the name space is also the module's name."""
    files = {**files, "_ops.py": OPS.format(name_space=name_space).encode()}
    # Where older versions of their library look.
    files["tdnet_ops/__init__.py"] = b"from .. import *  # noqa: F403\n"
    digests = {
        name: base64.b64encode(hashlib.sha256(files[name]).digest()).decode() for name in files
    }
    metadata = {
        "id": name_space,
        **{key: general[key] for key in ("name", "version", "license")},
        "python-depends": [],
        "backend": {"type": backend},
        "digest": {"algorithm": "sha256", "files": digests},
    }
    write(folder, {**files, "metadata.json": (json.dumps(metadata, indent=2) + "\n").encode()})


def write(folder: Path, files: Files) -> None:
    """Replace a folder by these files."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, contents in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents)


if __name__ == "__main__":
    main()
