"""The `build_ext` command: setuptools decides where the library goes, CMake makes it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from setuptools import Extension
from setuptools.command.build_ext import build_ext

from tdnet_build import BuildError
from tdnet_build.native import ROOT, build_library


class BuildLibrary(build_ext):
    def finalize_options(self) -> None:
        super().finalize_options()
        if os.environ.get("TDNET_BUILD_DIR"):
            self.build_temp = os.environ["TDNET_BUILD_DIR"]
        elif self.inplace:  # an editable build's own folder is new every time
            self.build_temp = str(ROOT / "build" / "native")

    def build_extension(self, ext: Extension) -> None:
        try:
            library = build_library(Path(self.build_temp).absolute())
        except BuildError as error:
            raise SystemExit(f"tdnet build failed: {error}") from None
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        # A running process may have the old file mapped: replace it, do not write into it.
        target.unlink(missing_ok=True)
        shutil.copy(library, target)
