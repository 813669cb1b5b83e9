import os
from pathlib import Path

import pytest

import tdnet_ops


def pytest_configure(config: pytest.Config) -> None:
    """Stop when the source tree would be tested in place of the installed package."""
    if os.environ.get("TDNET_TEST_INSTALLED") == "1":
        folder = Path(tdnet_ops.__file__).resolve()
        if folder.is_relative_to(config.rootpath.resolve()):
            raise pytest.UsageError(f"tdnet_ops comes from the source tree: {folder}")
