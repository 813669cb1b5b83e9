import importlib.metadata
import importlib.util
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def use_installed_package() -> None:
    """Import what is installed, not the sources, although `python -m pytest` puts them first.

    Sources that were compiled in place are as good as installed, here and in programs that tests
    start elsewhere.
    """
    if any(ROOT.glob("tdnet_ops/_C*.so")):
        folders = [str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        if _comes_from_sources():
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, folders))
    else:
        sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
    if importlib.util.find_spec("tdnet_ops") is None:
        pytest.exit(
            f'tdnet is not installed beside {sys.executable}: run pip install ".[test]" in {ROOT}',
            returncode=pytest.ExitCode.USAGE_ERROR,
        )


def _comes_from_sources() -> bool:
    spec = importlib.util.find_spec("tdnet_ops")
    return spec is not None and Path(spec.origin or "").resolve().parents[1] == ROOT


use_installed_package()

import torch  # noqa: E402

import tdnet_ops  # noqa: E402


def pytest_configure() -> None:
    """Stop when the source tree would be tested in place of the installed package."""
    if os.environ.get("TDNET_TEST_INSTALLED") == "1" and _comes_from_sources():
        raise pytest.UsageError(f"tdnet_ops comes from the source tree: {ROOT}")


def pytest_report_header() -> str:
    """Say what is tested, and beside which versions."""
    try:
        triton = f"Triton {importlib.metadata.version('triton')}"
    except importlib.metadata.PackageNotFoundError:
        triton = "no Triton"
    return f"tested: {Path(tdnet_ops.__file__).parent}, torch {torch.__version__}, {triton}"
