"""PEP 517 backend: setuptools, asking for torch, cmake and ninja only where none can be used.

A fixed `torch` in `[build-system] requires` would download a second torch of several gigabytes into
the isolated build environment on every install.

All but the library of an editable install is written outside of the source tree, which may be
read-only, and into a new folder: what an earlier build left would go into the wheel.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import setuptools
from setuptools import build_meta
from setuptools.build_meta import build_sdist, get_requires_for_build_sdist

from tdnet_build.find_torch import TORCH_REQUIREMENT, find_torch
from tdnet_build.native import CMAKE, NINJA

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]


@contextmanager
def outside_the_source_tree() -> Iterator[None]:
    """Let setup.py have setuptools write into a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="tdnet-build-") as folder:
        os.environ["TDNET_SETUPTOOLS_DIR"] = folder
        try:
            yield
        finally:
            del os.environ["TDNET_SETUPTOOLS_DIR"]


def further_requirements() -> list[str]:
    """Return what the build needs beyond `[build-system] requires` and is not there."""
    tools = [tool.requirement for tool in (CMAKE, NINJA) if tool.find() is None]
    return tools if find_torch() else [*tools, TORCH_REQUIREMENT]


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    """PEP 517 hook."""
    with outside_the_source_tree():
        return build_meta.get_requires_for_build_wheel(config_settings) + further_requirements()


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    """PEP 660 hook."""
    with outside_the_source_tree():
        return build_meta.get_requires_for_build_editable(config_settings) + further_requirements()


def require_wheel_command() -> None:
    """Stop in one line where setuptools lacks what makes wheels, its own from 70.1 on."""
    if not (find_spec("setuptools.command.bdist_wheel") or find_spec("wheel")):
        raise SystemExit(
            f"tdnet build failed: setuptools {setuptools.__version__} makes wheels only with the "
            "package `wheel`, which is not installed. Install it, or setuptools 70.1 or newer, or "
            "build in the source tree by: python setup.py build_ext --inplace"
        )


def prepare_metadata_for_build_wheel(*arguments: Any, **settings: Any) -> str:
    """PEP 517 hook."""
    require_wheel_command()
    with outside_the_source_tree():
        return build_meta.prepare_metadata_for_build_wheel(*arguments, **settings)


def prepare_metadata_for_build_editable(*arguments: Any, **settings: Any) -> str:
    """PEP 660 hook."""
    require_wheel_command()
    with outside_the_source_tree():
        return build_meta.prepare_metadata_for_build_editable(*arguments, **settings)


def build_wheel(*arguments: Any, **settings: Any) -> str:
    """PEP 517 hook."""
    require_wheel_command()
    with outside_the_source_tree():
        return build_meta.build_wheel(*arguments, **settings)


def build_editable(*arguments: Any, **settings: Any) -> str:
    """PEP 660 hook."""
    require_wheel_command()
    with outside_the_source_tree():
        return build_meta.build_editable(*arguments, **settings)
