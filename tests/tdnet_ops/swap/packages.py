"""Packages whose blocks are swapped; a test skips where one is missing."""

import importlib
import os

import pytest


def load(name):
    """The module of that name, else the test is skipped, or fails where packages are required."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        missing = f"{name} cannot be imported: {error}"
    if os.environ.get("TDNET_REQUIRE_SWAP_PACKAGES") == "1":
        pytest.fail(missing)
    pytest.skip(missing)
