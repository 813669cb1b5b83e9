"""Packages of the extra `train`, imported where they are needed."""

import importlib
from typing import Any


def extra_package(name: str, purpose: str) -> Any:
    """A module of one of them.

    Args:
        name: of the module.
        purpose: what needs it, in a message.

    Raises:
        ImportError: it is not installed; the text says what needs it and what to install.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ImportError(f'{purpose} needs {package}: pip install "tdnet[train]"') from error
