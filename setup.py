"""The compiled part of the package; everything else stands in pyproject.toml."""

import os
import sys
from pathlib import Path

from setuptools import Extension, setup

sys.path.insert(0, str(Path(__file__).resolve().parent / "build_tools"))

from tdnet_build.command import BuildLibrary

options = {"bdist_wheel": {"py_limited_api": "cp310"}}
if folder := os.environ.get("TDNET_SETUPTOOLS_DIR"):  # set by tdnet_build.backend
    options |= {"build": {"build_base": folder}, "egg_info": {"egg_base": folder}}

setup(
    # Not in pyproject.toml, where no field is right for every setuptools: license = "MIT" is an
    # error before 77, license = { text = "MIT" } deprecated since.
    license="MIT",
    # CMakeLists.txt lists the sources.
    ext_modules=[Extension("tdnet_ops._C", sources=[], py_limited_api=True)],
    cmdclass={"build_ext": BuildLibrary},
    options=options,
)
