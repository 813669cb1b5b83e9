"""The compiled part of the package; everything else stands in pyproject.toml."""

import sys
from pathlib import Path

from setuptools import Extension, setup

sys.path.insert(0, str(Path(__file__).resolve().parent / "build_tools"))

from tdnet_build.extension import BuildLibrary

setup(
    # Here because no way to write it in pyproject.toml is right for every setuptools: its newer field
    # is an error before 77, its older one deprecated since.
    license="MIT",
    # The sources are listed by the command itself, which knows whether CUDA is on.
    ext_modules=[Extension("tdnet_ops._C", sources=[], py_limited_api=True)],
    cmdclass={"build_ext": BuildLibrary},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
