"""PEP 517 backend: setuptools, asking for torch only where no installed torch can be used.

A fixed `torch` in `[build-system] requires` would download a second torch of several gigabytes into
the isolated build environment on every install.
"""

from __future__ import annotations

from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

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
