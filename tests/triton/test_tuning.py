"""Choosing configurations: from the table, by timing, by compiling; failing over."""

import contextlib
import itertools
import json
import logging

import pytest
import torch
import triton
from triton.errors import TritonError

from tdnet_ops import triton as kernels
from tdnet_ops.triton import compiled, launch, targets, tune
from tdnet_ops.triton.spatial_pool import _candidates as pool_candidates

TARGET = "cuda-90"
X = torch.randn(1, 64, 9, 9)
CHANNELS_LAST = X.contiguous(memory_format=torch.channels_last)


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


def chosen(kernel="pool", shape_class="pixels", target=TARGET):
    return launch.choices[target, kernel, shape_class].left[0]


def test_a_known_device_is_not_tuned(clock):
    with targets.compiling_for(TARGET):
        kernels.spatial_pool(X, 2)
        assert chosen() == launch.table().find(TARGET, "pool", "pixels")
    assert clock == []


def test_an_unknown_device_is_tuned_once_for_each_shape_class(clock):
    launch.table().configurations.clear()
    with targets.compiling_for(TARGET) as launched:
        kernels.spatial_pool(X, 2)
        tuned = len(clock)
        kernels.spatial_pool(X, 3)
        assert len(clock) == tuned
        kernels.spatial_pool(CHANNELS_LAST, 2)
        assert len(clock) == 2 * tuned
        # The last that was timed was the fastest.
        for layout in ("pixels", "channels"):
            assert chosen(shape_class=layout) == pool_candidates(layout)[-1]
    assert tuned > 1
    assert [shape_class for _, shape_class in launched] == ["pixels", "pixels", "channels"]


def test_nothing_is_timed_while_a_graph_is_recorded(clock, monkeypatch):
    launch.table().configurations.clear()
    with targets.compiling_for(TARGET):
        monkeypatch.setattr(launch, "_capturing", lambda device: True)
        kernels.spatial_pool(X, 2)
        assert clock == []
        assert launch.choices == {}
        monkeypatch.setattr(launch, "_capturing", lambda device: False)
        kernels.spatial_pool(X, 2)
        assert len(clock) == len(pool_candidates("pixels"))


# --- failing over ---------------------------------------------------------------------------------


@pytest.fixture
def spills(monkeypatch):
    """A function: how many registers kernels of `pool` spill, by the PIXELS of their tile.

    Returns the kernels that were looked at, in order.
    """
    looked_at = []

    def set_spills(by_pixels):
        def look(found):
            found._init_handles()
            place = found.src.fn.arg_names.index("PIXELS")
            found.n_spills = by_pixels.get(found.src.constants[place,], 0)
            looked_at.append(found)
            return compiled.flaw(found)

        monkeypatch.setattr(launch, "flaw", look)
        return looked_at

    return set_spills


def ship_first(shape_class):
    """Makes the first candidate the table's; returns all."""
    candidates = pool_candidates(shape_class)
    launch.table().configurations[TARGET]["pool"][shape_class] = candidates[0]
    return candidates


def test_a_configuration_that_spills_fails_over(spills, caplog):
    caplog.set_level(logging.INFO, "tdnet_ops.triton.launch")
    candidates = ship_first("pixels")
    assert [candidate["PIXELS"] for candidate in candidates] == [128, 64, 128, 256]
    spills({128: 5})
    with targets.compiling_for(TARGET) as launched:
        kernels.spatial_pool(X, 2)
        assert chosen() == candidates[1]
        assert len(launched) == 1  # what spills never ran
    (message,) = (record.getMessage() for record in caplog.records)
    assert "pool, pixels" in message
    assert f"under Triton {triton.__version__}: spills 5 registers" in message


def test_the_least_evil_runs_where_every_candidate_spills(spills):
    candidates = ship_first("pixels")
    looked_at = spills({128: 9, 64: 3, 256: 4})
    with targets.compiling_for(TARGET):
        kernels.spatial_pool(X, 2)
        assert chosen() == candidates[1]
        kernels.spatial_pool(X, 2)
        assert len(looked_at) == len(candidates)


def test_what_was_settled_is_looked_at_no_more(monkeypatch, spills):
    ship_first("pixels")
    spills({128: 5})
    with targets.compiling_for(TARGET):
        kernels.spatial_pool(X, 2)

        def never(*_):
            raise AssertionError("looked at again")

        monkeypatch.setattr(launch, "_fail_over", never)
        kernels.spatial_pool(X, 2)


def test_another_kernel_of_the_class_is_looked_at(spills):
    """Sizes of 1 are compiled in: another kernel, which may spill where the first did not."""
    candidates = ship_first("channels")
    assert [candidate["PIXELS"] for candidate in candidates] == [8, 8, 16, 4]
    with targets.compiling_for(TARGET) as launched:
        kernels.spatial_pool(CHANNELS_LAST, 2)
        assert chosen(shape_class="channels") == candidates[0]
        spills({8: 2})
        kernels.spatial_pool(CHANNELS_LAST, 1)
        assert chosen(shape_class="channels") == candidates[2]
        kernels.spatial_pool(CHANNELS_LAST, 1)
        assert len(launched) == 3
        assert launched[1][0] is not launched[2][0]


def test_a_timed_configuration_may_spill(spills):
    """By this very Triton: it is known to be the fastest."""
    candidates = ship_first("pixels")
    spills({128: 5})
    for version, expected in ((triton.__version__, 0), ("2.0.0", 1)):
        launch.table().sources[TARGET] = launch.Source("timed", [version])
        with targets.compiling_for(TARGET):
            kernels.spatial_pool(X, 2)
            assert chosen() == candidates[expected]


def test_a_configuration_that_is_too_large_fails_over():
    """For real: three stages of 256 keys and values take 295 KB of shared memory."""
    large = {"QUERIES": 16, "KEYS": 256, "CHANNELS": 128, "num_warps": 4, "num_stages": 3}
    launch.table().configurations["cuda-86"]["attend"]["half-few-128"] = large
    q = CHANNELS_LAST.half()
    v = torch.randn(1, 9, 9, 128).half().permute(0, 3, 1, 2)
    with targets.compiling_for("cuda-86") as launched:
        kernels.attention_propagate(q, q, v)
        assert len(launched) == 1
        assert compiled.flaw(launched[0][0]) is None
        assert chosen("attend", "half-few-128", "cuda-86")["KEYS"] < 256


def test_an_error_of_the_compiler_fails_over(monkeypatch):
    """And comes through where nothing is left."""
    candidates = ship_first("pixels")
    bad = itertools.chain([RuntimeError("PassManager::run failed"), TritonError()])
    look = compiled.flaw

    def fail(found):
        error = next(bad, None)
        if error is not None:
            raise error
        return look(found)

    monkeypatch.setattr(launch, "flaw", fail)
    with targets.compiling_for(TARGET):
        kernels.spatial_pool(X, 2)
        assert chosen() == candidates[2]
    bad = itertools.repeat(triton.OutOfResources(1, 0, "shared memory"))
    with targets.compiling_for(TARGET), pytest.raises(triton.OutOfResources):
        kernels.spatial_pool(X, 2)
    bad = itertools.repeat(RuntimeError("illegal memory access"))
    with targets.compiling_for(TARGET), pytest.raises(RuntimeError, match="illegal"):
        kernels.spatial_pool(X, 2)


def test_it_fails_over_while_a_graph_is_recorded(monkeypatch, spills, clock):
    candidates = ship_first("pixels")
    monkeypatch.setattr(launch, "_capturing", lambda device: True)
    spills({128: 5})
    with targets.compiling_for(TARGET) as launched:
        kernels.spatial_pool(X, 2)
        assert chosen() == candidates[1]
        assert len(launched) == 1
    assert clock == []


# --- the command ----------------------------------------------------------------------------------


def few(device):
    yield "spatial_pool", lambda: kernels.spatial_pool(X, 2)


def test_the_command_writes_a_table(monkeypatch, tmp_path):
    monkeypatch.setattr(tune, "workloads", few)
    output = tmp_path / "table.json"
    command = ["--target", "cuda-86", "hip-gfx942", "--output", str(output)]
    assert tune.main(command) == 0
    table = json.loads(output.read_text())
    for target in ("cuda-86", "hip-gfx942"):
        assert table["configurations"][target]["pool"]["pixels"]["PIXELS"] > 0
        assert table["sources"][target] == {"how": "predicted", "triton": [triton.__version__]}
    assert set(table["configurations"]) == set(targets.NAMES)


def test_the_command_adds_its_triton_where_nothing_changes(monkeypatch, tmp_path, spills):
    monkeypatch.setattr(tune, "workloads", few)
    output = tmp_path / "table.json"
    versions = []
    for version in ("7.1", "7.2", "7.2", "7.3"):
        monkeypatch.setattr(triton, "__version__", version)
        if version == "7.3":
            spills({128: 1})
        assert tune.main(["--target", TARGET, "--output", str(output)]) == 0
        versions.append(json.loads(output.read_text())["sources"][TARGET]["triton"])
    assert versions == [["7.1"], ["7.1", "7.2"], ["7.1", "7.2"], ["7.3"]]


def test_the_command_goes_on_from_the_table_that_it_updates(monkeypatch, tmp_path):
    """Not from the shipped one, or runs under several Tritons would never agree."""
    monkeypatch.setattr(tune, "workloads", few)
    table = json.loads(tune.DEFAULTS.read_text())
    last = pool_candidates("pixels")[-1]
    assert last != table["configurations"][TARGET]["pool"]["pixels"]
    table["configurations"][TARGET]["pool"]["pixels"] = last
    output = tmp_path / "table.json"
    output.write_text(json.dumps(table))
    assert tune.main(["--target", TARGET, "--output", str(output)]) == 0
    assert launch.Table.read(output.read_text()).find(TARGET, "pool", "pixels") == last


def test_the_command_looks_for_the_folder_first(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(tune, "predict", lambda *_: pytest.fail("an hour is lost"))
    with pytest.raises(SystemExit, match="2"):
        tune.main(["--target", TARGET, "--output", str(tmp_path / "nowhere" / "table.json")])
    assert "nowhere is no folder" in capsys.readouterr().err


def test_the_command_says_that_no_candidate_is_clean(monkeypatch, tmp_path, spills, capsys):
    monkeypatch.setattr(tune, "workloads", few)
    spills({64: 1, 128: 2, 256: 3})
    output = tmp_path / "table.json"
    assert tune.main(["--target", TARGET, "--output", str(output)]) == 1
    assert "pool, pixels: every candidate is flawed" in capsys.readouterr().err
    assert not output.exists()


def test_the_command_times_whatever_the_table_says(monkeypatch, tmp_path, clock):
    monkeypatch.setattr(tune, "workloads", few)
    monkeypatch.setattr(tune.backends, "refusal", lambda *_: None)
    monkeypatch.setattr(launch, "_current", lambda device: contextlib.nullcontext())
    output = tmp_path / "table.json"
    with targets.compiling_for(TARGET):
        assert tune.main(["--output", str(output)]) == 0
    table = launch.Table.read(output.read_text())
    assert table.find(TARGET, "pool", "pixels") == pool_candidates("pixels")[-1]
    assert table.sources[TARGET] == launch.Source("timed", [triton.__version__])
    assert len(clock) == len(pool_candidates("pixels"))


def test_a_stop_keeps_what_is_timed(monkeypatch, tmp_path, clock):
    def stopped(device):
        yield from few(device)
        raise KeyboardInterrupt

    monkeypatch.setattr(tune, "workloads", stopped)
    monkeypatch.setattr(tune.backends, "refusal", lambda *_: None)
    monkeypatch.setattr(launch, "_current", lambda device: contextlib.nullcontext())
    output = tmp_path / "table.json"
    with targets.compiling_for(TARGET), pytest.raises(KeyboardInterrupt):
        tune.main(["--output", str(output)])
    table = launch.Table.read(output.read_text())
    assert table.configurations[TARGET] == {"pool": {"pixels": pool_candidates("pixels")[-1]}}
    assert table.sources[TARGET] == launch.Source("timed", [triton.__version__])


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
    table = launch.Table.read(tune.DEFAULTS.read_text())
    assert set(table.sources) == set(table.configurations) == set(targets.NAMES)
    for source in table.sources.values():
        assert source.how in ("timed", "predicted")
        assert source.triton
