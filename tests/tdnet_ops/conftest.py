import pytest
import torch


@pytest.fixture(autouse=True)
def _fresh_state():
    """Threads, compiled code and random numbers of one test do not reach the next."""
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    torch._dynamo.reset()
    yield
    torch.set_num_threads(threads)
