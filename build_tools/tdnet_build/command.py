"""The `build_ext` command: setuptools decides where the libraries go, CMake makes them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from setuptools import Extension
from setuptools.command.build_ext import build_ext

from tdnet_build import BuildError
from tdnet_build.native import ROOT, build_libraries


class BuildLibrary(build_ext):
    def finalize_options(self) -> None:
        super().finalize_options()
        if os.environ.get("TDNET_BUILD_DIR"):
            self.build_temp = os.environ["TDNET_BUILD_DIR"]
        elif self.inplace:  # an editable build's own folder is new every time
            self.build_temp = str(ROOT / "build" / "native")

    def build_extension(self, ext: Extension) -> None:
        try:
            module, library = build_libraries(Path(self.build_temp).absolute())
        except BuildError as error:
            raise SystemExit(f"tdnet build failed: {error}") from None
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        replace(module, target)
        replace(library, target.with_name(library.name))

    def copy_extensions_to_source(self) -> None:
        """Copy the library too, which setuptools does not know."""
        super().copy_extensions_to_source()
        package = Path(self.get_finalized_command("build_py").get_package_dir("tdnet_ops"))
        for library in Path(self.build_lib, "tdnet_ops").glob("lib*.so"):
            replace(library, package / library.name)


def replace(built: Path, target: Path) -> None:
    """Copy; a running process may have the old file mapped, which is not to be written into."""
    target.unlink(missing_ok=True)
    shutil.copy(built, target)
