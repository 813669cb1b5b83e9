import sys
from pathlib import Path

import pytest
import samples
import torch

from tdnet_ops import backends

# So that test files can import the module beside them.
sys.path.append(str(Path(__file__).resolve().parent))


@pytest.fixture
def gpu(monkeypatch):
    """The first CUDA device, on which samples are made then, whatever --device says."""
    device = torch.device("cuda", 0)
    monkeypatch.setattr(samples, "DEVICE", device)
    return device


def _require(backend, device):
    reason = backends.why_unavailable(backend, "spatial_pool", device, torch.float32)
    if reason is not None:
        pytest.fail(f"backend {backend!r} cannot run on {device}: {reason}", pytrace=False)


@pytest.fixture(params=["cuda", "triton"])
def kernels(request, gpu):
    """A backend of the GPU. One that cannot run fails; -k leaves out what was not built."""
    _require(request.param, gpu)
    return request.param


def pytest_generate_tests(metafunc):
    """Here, since pytest may read this file before it knows --device."""
    if "backend" in metafunc.fixturenames:
        names = [x for x in backends.preference(samples.DEVICE.type) if x != "reference"]
        metafunc.parametrize("backend", names, indirect=True)


@pytest.fixture
def backend(request, device):
    """The backends with kernels for --device: the C++ one, or CUDA's and Triton's."""
    _require(request.param, device)
    return request.param


def pytest_collection_modifyitems(config, items):
    """What a backend declares missing is not asked of it."""
    missing = [item for item in items if _lacks_kernel(item)]
    config.hook.pytest_deselected(items=missing)
    items[:] = [item for item in items if item not in missing]


def _lacks_kernel(item):
    given = getattr(item, "callspec", None) and item.callspec.params
    if not given or "sample" not in given:
        return False
    backend = given.get("backend", given.get("kernels"))
    # One that was not built has no kernels at all: it is skipped or fails by that name.
    declares = backend is not None and backends.has_kernel(backend, "spatial_pool")
    return declares and not backends.has_kernel(backend, given["sample"].operator)
