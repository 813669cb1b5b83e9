import sys
from pathlib import Path

import pytest
import samples
import torch

# So that test files can import the modules beside them.
sys.path.append(str(Path(__file__).resolve().parent))

import emulator


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
