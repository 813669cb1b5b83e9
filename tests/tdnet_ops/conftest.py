import sys
from pathlib import Path

import pytest
import torch

# So that test files can import the helper module beside them; no package lies in this folder.
sys.path.append(str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _fresh_state():
    """Threads, compiled code and random numbers of one test do not reach the next."""
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    torch._dynamo.reset()
    yield
    torch.set_num_threads(threads)
