"""Packages that only some measurements need."""

import importlib
from typing import Any


def optional_package(name: str, purpose: str) -> Any:
    """A module of a package of the extra "train".

    Raises:
        ImportError: it is not installed; the text says what needs it and what to install.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ImportError(f'{purpose} needs {package}: pip install "tdnet[train]"') from error
