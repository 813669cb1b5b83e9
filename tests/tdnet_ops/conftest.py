import pytest
import torch

from tdnet_ops.bench import measure, roofs


@pytest.fixture(autouse=True)
def _fresh_state():
    """Threads, compiled code and random numbers of one test do not reach the next."""
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    torch._dynamo.reset()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def quick_bench(monkeypatch):
    """Of the benchmark suite: roofs that take no time, memory and threads that no test needs."""
    torch.set_num_threads(1)
    monkeypatch.setattr(roofs, "SQUARE", 16)
    monkeypatch.setattr(roofs, "PEAK_STEPS", 10)
    monkeypatch.setattr(roofs, "COPY_BYTES", 4096)
    monkeypatch.setattr(measure, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(measure, "BURST_SECONDS", 0.0)
