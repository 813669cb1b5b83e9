"""Packages of the extra `train`, imported where they are needed."""

import importlib
from typing import Any

# Where a module has another name than what is installed.
_DISTRIBUTIONS = {"cv2": "opencv-python-headless", "yaml": "pyyaml"}


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
        install = _DISTRIBUTIONS.get(package, package)
        raise ImportError(f"{purpose} needs {package}: pip install {install}") from error
