import sys
from pathlib import Path

import pytest
import torch

# So that test files can import the modules beside them and the list of samples.
FOLDER = Path(__file__).resolve().parent
sys.path += [str(FOLDER), str(FOLDER.parent / "tdnet_ops")]

import emulator  # noqa: E402
import samples  # noqa: E402


@pytest.fixture(autouse=True)
def _samples_on_the_cpu(monkeypatch):
    """The emulator runs on CPU tensors, whatever --device says."""
    monkeypatch.setattr(samples, "DEVICE", torch.device("cpu"))


@pytest.fixture(scope="session")
def examples():
    """The example kernels of kernels/."""
    return emulator.load_examples()


@pytest.fixture(scope="session")
def operators():
    """torch.ops.tdnet_emulator."""
    return emulator.load_operators()
