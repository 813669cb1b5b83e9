"""Packages of the extra `train`, imported when they are needed."""

import importlib
from typing import Any


def training_package(name: str) -> Any:
    """A module of a package that only training needs.

    Raises:
        ImportError: it is not installed; the text says what to install.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f'{name}: expected it to be installed, got "{error}"; pip install "tdnet[train]"'
        ) from error
