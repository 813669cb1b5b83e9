"""PEP 517 backend: setuptools, asking for torch only where no installed torch can be used.

A fixed `torch` in `[build-system] requires` would download a second torch of several gigabytes into
the isolated build environment on every install.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import setuptools
from setuptools import build_meta
from setuptools.build_meta import build_sdist, get_requires_for_build_sdist

from tdnet_build.find_torch import TORCH_REQUIREMENT, find_torch

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


def torch_requirement() -> list[str]:
    """Return what the build needs beyond `[build-system] requires`: torch, or nothing."""
    return [] if find_torch() else [TORCH_REQUIREMENT]


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    """PEP 517 hook."""
    return build_meta.get_requires_for_build_wheel(config_settings) + torch_requirement()


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    """PEP 660 hook."""
    return build_meta.get_requires_for_build_editable(config_settings) + torch_requirement()


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
    return build_meta.prepare_metadata_for_build_wheel(*arguments, **settings)


def prepare_metadata_for_build_editable(*arguments: Any, **settings: Any) -> str:
    """PEP 660 hook."""
    require_wheel_command()
    return build_meta.prepare_metadata_for_build_editable(*arguments, **settings)


def build_wheel(*arguments: Any, **settings: Any) -> str:
    """PEP 517 hook."""
    require_wheel_command()
    return build_meta.build_wheel(*arguments, **settings)


def build_editable(*arguments: Any, **settings: Any) -> str:
    """PEP 660 hook."""
    require_wheel_command()
    return build_meta.build_editable(*arguments, **settings)
