"""Choosing configurations: from the table, by timing, by compiling."""

import json

import pytest
import torch

from tdnet_ops import triton as kernels
from tdnet_ops.triton import launch, targets, tune


@pytest.fixture(autouse=True)
def _fresh_table():
    launch.table.cache_clear()
    yield
    launch.table.cache_clear()


@pytest.fixture
def clock(monkeypatch):
    """Times every launch as faster than the one before; counts them."""
    timed = []

    def benchmark(call, quantiles):
        call()
        timed.append(1.0 / (1 + len(timed)))
        return [timed[-1]] * len(quantiles)

    monkeypatch.setattr(targets._Driver, "get_benchmarker", lambda self: benchmark, raising=False)
    return timed


def test_a_known_device_is_not_tuned(clock):
    with targets.compiling_for("cuda-90"):
        kernels.spatial_pool(torch.randn(1, 64, 9, 9), 2)
    assert clock == []


def test_an_unknown_device_is_tuned_once_for_each_shape_class(clock):
    launch.table().clear()
    x = torch.randn(1, 64, 9, 9)
    with targets.compiling_for("cuda-90") as launched:
        kernels.spatial_pool(x, 2)
        tuned = len(clock)
        kernels.spatial_pool(x, 3)
        assert len(clock) == tuned
        kernels.spatial_pool(x.contiguous(memory_format=torch.channels_last), 2)
        assert len(clock) == 2 * tuned
    assert tuned > 1
    assert [shape_class for _, shape_class in launched] == ["pixels", "pixels", "channels"]
    # The last that was timed was the fastest.
    chosen = launch.table()["cuda-90"]["pool"]
    assert set(chosen) == {"pixels", "channels"}
    assert all(configuration["num_warps"] == 4 for configuration in chosen.values())


def test_nothing_is_timed_while_a_graph_is_recorded(clock, monkeypatch):
    monkeypatch.setattr(launch, "_capturing", lambda device: True)
    launch.table().clear()
    with targets.compiling_for("cuda-90"):
        kernels.spatial_pool(torch.randn(1, 64, 9, 9), 2)
    assert clock == []
    assert launch.table()["cuda-90"]["pool"] == {}


def few(device):
    yield "spatial_pool", lambda: kernels.spatial_pool(torch.randn(1, 64, 9, 9), 2)


def test_the_command_writes_a_table(monkeypatch, tmp_path):
    monkeypatch.setattr(tune, "workloads", few)
    output = tmp_path / "table.json"
    assert tune.main(["--target", "cuda-86", "hip-gfx942", "--output", str(output)]) == 0
    table = json.loads(output.read_text())
    for target in ("cuda-86", "hip-gfx942"):
        assert table["configurations"][target]["pool"]["pixels"]["PIXELS"] > 0
        assert table["sources"][target].startswith("predicted")
    assert set(table["configurations"]) == set(targets.NAMES)
    assert launch.choose is launch._tuned


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to time")
def test_the_command_says_why_nothing_can_be_timed(capsys, tmp_path):
    output = tmp_path / "table.json"
    assert tune.main(["--output", str(output)]) == 1
    assert "nothing can be timed: torch finds no CUDA device" in capsys.readouterr().err
    assert not output.exists()


def test_unknown_targets_are_refused():
    with (
        pytest.raises(ValueError, match=r"name: expected one of .*cuda-80.*got 'cuda-20'"),
        targets.compiling_for("cuda-20"),
    ):
        pass


def test_the_shipped_table_names_its_sources():
    table = json.loads(tune.DEFAULTS.read_text())
    assert set(table["sources"]) == set(table["configurations"]) == set(targets.NAMES)
