import os

import pytest
import samples
import torch

# These need another interpreter of the kernels, in a process of their own: see test_interpreted.py.
collect_ignore = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["interpreted"]


@pytest.fixture(autouse=True)
def _samples_on_the_cpu(monkeypatch):
    """Interpreted and merely compiled kernels take CPU tensors, whatever --device says."""
    monkeypatch.setattr(samples, "DEVICE", torch.device("cpu"))
