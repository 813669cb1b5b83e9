"""The option --device itself: samples keep their layout when moved, routes carry, refusals name."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import samples
import torch

root = samples.load(Path(__file__).resolve().parents[1] / "conftest.py")
META = torch.device("meta")


@pytest.mark.parametrize("layout", samples.LAYOUTS)
def test_moving_keeps_strides_offset_and_surroundings(layout):
    x = samples.place(torch.randn(2, 3, 4, 5), layout)
    copy = samples.moved(x, torch.device("cpu"))
    assert (copy.stride(), copy.storage_offset()) == (x.stride(), x.storage_offset())
    assert copy.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()
    assert copy.untyped_storage().nbytes() == x.untyped_storage().nbytes()
    # Every byte, so also the NaN between and around the numbers.
    old, new = (
        torch.empty(0, dtype=torch.uint8).set_(y.untyped_storage()).tolist() for y in (x, copy)
    )
    assert old == new


def test_samples_are_made_on_the_device(monkeypatch):
    sample = samples.select(["middle"], ["every_other"], [torch.float16], ["spatial_pool"])[0]
    here = sample.arguments()[0]
    monkeypatch.setattr(samples, "DEVICE", META)
    there = sample.arguments()[0]
    assert there.device.type == "meta"
    assert (there.shape, there.stride()) == (here.shape, here.stride())
    assert there.storage_offset() == here.storage_offset()


@pytest.fixture
def elsewhere(monkeypatch):
    """Another device than the CPU, of which results come back: stands for a GPU."""
    monkeypatch.setattr(samples, "DEVICE", META)
    monkeypatch.setattr(samples.routes, "on_cpu", lambda value: ("came back", value))


def test_routes_carry_tensors_of_the_cpu_there_and_back(elsewhere):
    seen = []

    def call(*arguments, **named):
        seen[:] = [arguments, named]
        return "result"

    carried = samples.routes.there_and_back(call)
    x = samples.place(torch.randn(2, 3, 4, 5), "channels_last")
    assert carried([x, x], 3, None, bias=x, mode="max") == ("came back", "result")
    (blocks, number, nothing), named = seen
    for tensor in (*blocks, named["bias"]):
        assert (tensor.device, tensor.stride()) == (META, x.stride())
    assert (number, nothing, named["mode"]) == (3, None, "max")
    # What lies there already is handed on as it is, and its result stays.
    there = x.to("meta")
    assert carried(there) == "result"
    assert seen[0][0] is there


def test_routes_carry_gradients(monkeypatch):
    monkeypatch.setattr(samples, "DEVICE", META)
    x = torch.randn(1, 2, 3, 4, requires_grad=True)
    assert samples.routes.carried_tensor(x).requires_grad


def test_the_route_of_triton_comes_with_a_gpu(monkeypatch):
    monkeypatch.setattr(samples, "ROUTES", dict(samples.ROUTES))
    monkeypatch.setattr(samples, "DEVICE", samples.DEVICE)
    samples.use_device(torch.device("cuda", 0))
    assert str(samples.DEVICE) == "cuda:0"
    assert {"torch.ops.tdnet", "torch.ops.tdnet_triton"} < set(samples.ROUTES)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpu", r"^--device: expected cpu, cuda or xpu, got 'gpu'$"),
        ("meta", r"^--device: expected cpu, cuda or xpu, got 'meta'$"),
        ("cuda", r"^--device cuda: torch .* finds 0 CUDA devices$"),
        ("cuda:3", r"^--device cuda:3: torch .* finds 0 CUDA devices$"),
        ("xpu", r"^--device xpu: torch .* finds 0 XPU devices$"),
    ],
)
def test_a_device_that_is_not_there_is_refused(name, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.xpu, "device_count", lambda: 0)
    with pytest.raises(pytest.UsageError, match=message):
        root._asked_device(name)


def test_a_device_that_is_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert root._asked_device("cpu") == torch.device("cpu")
    assert root._asked_device("cuda") == torch.device("cuda", 0)
    assert root._asked_device("cuda:1") == torch.device("cuda", 1)


def test_the_backends_of_the_device_are_tested(pytestconfig, tmp_path):
    """Also where a folder is named, whose conftest.py pytest reads before it knows --device."""
    folder = pytestconfig.rootpath / "tests" / "device"
    arguments = ["--device", "cuda", "--collect-only", "-q", "-p", "no:cacheprovider", str(folder)]
    program = (
        "import pytest, sys, torch; torch.cuda.device_count = lambda: 1; "
        f"sys.exit(pytest.main({arguments}))"
    )
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    for backend in ("cuda", "triton"):
        assert f"test_one_hot_queries_give_exact_logits[{backend}-" in result.stdout
    assert "exact_logits[cpu-" not in result.stdout


def asking(**wanted):
    marker = SimpleNamespace(kwargs=wanted)
    return SimpleNamespace(get_closest_marker=lambda name: marker if name == "needs_cuda" else None)


@pytest.mark.parametrize(
    ("required", "found", "wanted", "outcome"),
    [
        ("", 0, {}, pytest.skip.Exception),
        ("1", 0, {}, pytest.fail.Exception),
        ("1", 1, {}, None),
        ("1", 1, {"devices": 2}, pytest.skip.Exception),
        ("2", 1, {"devices": 2}, pytest.fail.Exception),
        ("2", 2, {"devices": 2}, None),
        ("", 1, {"memory_gb": 30}, pytest.skip.Exception),
        ("1", 1, {"memory_gb": 30}, pytest.fail.Exception),
        ("1", 1, {"memory_gb": 10}, None),
    ],
)
def test_what_needs_a_gpu_is_skipped_or_fails(monkeypatch, required, found, wanted, outcome):
    monkeypatch.setenv("TDNET_REQUIRE_GPU", required)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (20 * 10**9, 24 * 10**9))
    if outcome is None:
        root.pytest_runtest_setup(asking(**wanted))
        return
    with pytest.raises(outcome, match=r"needs (1 CUDA device,|2 CUDA devices,|30 GB)"):
        root.pytest_runtest_setup(asking(**wanted))
