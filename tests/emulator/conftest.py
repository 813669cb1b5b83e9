import sys
from pathlib import Path

import pytest

# So that test files can import the modules beside them and the list of samples.
FOLDER = Path(__file__).resolve().parent
sys.path += [str(FOLDER), str(FOLDER.parent / "tdnet_ops")]

import emulator  # noqa: E402


@pytest.fixture(scope="session")
def examples():
    """The example kernels of kernels/."""
    return emulator.load_examples()


@pytest.fixture(scope="session")
def operators():
    """torch.ops.tdnet_emulator."""
    return emulator.load_operators()
