"""Choosing configurations: from the table, by timing, by compiling; failing over."""

import contextlib
import functools
import itertools
import json
import logging
import threading

import pytest
import torch
import triton
from triton.errors import TritonError

from tdnet_ops.operators import OPERATORS
from tdnet_ops.triton.run import run
from tdnet_ops.triton.shared import choices, compiled, launch
from tdnet_ops.triton.spatial_pool import _candidates as pool_candidates
from tdnet_ops.triton.tuning import targets, tune
from tdnet_ops.triton.tuning.table import DEFAULTS, Source, Table

TARGET = "cuda-90"
X = torch.randn(1, 64, 9, 9)
CHANNELS_LAST = X.contiguous(memory_format=torch.channels_last)


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


EMPTY = Table({}, {})
spatial_pool = functools.partial(run, OPERATORS["spatial_pool"])


def chosen(compilation, kernel="pool", shape_class="pixels", target=TARGET):
    return compilation.choices.by_key[target, kernel, shape_class].left[0]


def test_a_known_device_is_not_tuned(clock):
    with targets.compiling_for(TARGET) as compilation:
        spatial_pool(X, 2)
        assert chosen(compilation) == Table.read().find(TARGET, "pool", "pixels")
    assert clock == []


def test_an_unknown_device_is_tuned_once_for_each_shape_class(clock):
    with targets.compiling_for(TARGET, EMPTY) as compilation:
        spatial_pool(X, 2)
        tuned = len(clock)
        spatial_pool(X, 3)
        assert len(clock) == tuned
        spatial_pool(CHANNELS_LAST, 2)
        assert len(clock) == 2 * tuned
        # The last that was timed was the fastest.
        for adjacent in ("pixels", "channels"):
            assert chosen(compilation, shape_class=adjacent) == pool_candidates(adjacent)[-1]
    assert tuned > 1
    assert [shape_class for _, shape_class in compilation.launched] == [
        "pixels",
        "pixels",
        "channels",
    ]


def test_threads_choose_once(clock, monkeypatch):
    """The second waits for the first, which is still timing."""
    benchmark = targets._Driver.get_benchmarker(None)
    other = threading.Thread(target=lambda: spatial_pool(X, 2))

    def start_the_other(call, quantiles):
        if not clock:
            other.start()
            other.join(timeout=1.0)  # Without a lock it would be done by then, or be timing too.
        return benchmark(call, quantiles)

    monkeypatch.setattr(targets._Driver, "get_benchmarker", lambda self: start_the_other)
    with targets.compiling_for(TARGET, EMPTY) as compilation:
        spatial_pool(X, 2)
        other.join()
    assert len(clock) == len(pool_candidates("pixels"))
    assert len(compilation.launched) == 2


def test_nothing_is_timed_while_a_graph_is_recorded(clock, monkeypatch):
    with targets.compiling_for(TARGET, EMPTY) as compilation:
        monkeypatch.setattr(choices, "_capturing", lambda device: True)
        spatial_pool(X, 2)
        assert clock == []
        assert compilation.choices.by_key == {}
        monkeypatch.setattr(choices, "_capturing", lambda device: False)
        spatial_pool(X, 2)
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

        monkeypatch.setattr(choices, "flaw", look)
        return looked_at

    return set_spills


def table_of(configuration, kernel="pool", shape_class="pixels", target=TARGET, source=None):
    """A table with one configuration, predicted by a Triton of old."""
    source = source or Source("predicted", ["2.0.0"])
    return Table({target: {kernel: {shape_class: configuration}}}, {target: source})


PIXELS, CHANNELS = pool_candidates("pixels"), pool_candidates("channels")
FIRST = table_of(PIXELS[0])


def test_a_configuration_that_spills_fails_over(spills, caplog):
    caplog.set_level(logging.INFO, "tdnet_ops.triton")
    assert [candidate["PIXELS"] for candidate in PIXELS] == [128, 64, 128, 256]
    spills({128: 5})
    with targets.compiling_for(TARGET, FIRST) as compilation:
        spatial_pool(X, 2)
        assert chosen(compilation) == PIXELS[1]
        assert len(compilation.launched) == 1  # what spills never ran
    (message,) = (record.getMessage() for record in caplog.records)
    assert "pool, pixels" in message
    assert f"under Triton {triton.__version__}: spills 5 registers" in message


def test_the_least_evil_runs_where_every_candidate_spills(spills):
    looked_at = spills({128: 9, 64: 3, 256: 4})
    with targets.compiling_for(TARGET, FIRST) as compilation:
        spatial_pool(X, 2)
        assert chosen(compilation) == PIXELS[1]
        spatial_pool(X, 2)
        assert len(looked_at) == len(PIXELS)


def test_what_was_settled_is_looked_at_no_more(monkeypatch, spills):
    spills({128: 5})
    with targets.compiling_for(TARGET, FIRST):
        spatial_pool(X, 2)

        def never(*_):
            raise AssertionError("looked at again")

        monkeypatch.setattr(choices, "_fail_over", never)
        spatial_pool(X, 2)


def test_another_kernel_of_the_class_is_looked_at(spills):
    """Sizes of 1 are compiled in: another kernel, which may spill where the first did not."""
    assert [candidate["PIXELS"] for candidate in CHANNELS] == [8, 8, 16, 4]
    table = table_of(CHANNELS[0], shape_class="channels")
    with targets.compiling_for(TARGET, table) as compilation:
        spatial_pool(CHANNELS_LAST, 2)
        assert chosen(compilation, shape_class="channels") == CHANNELS[0]
        spills({8: 2})
        spatial_pool(CHANNELS_LAST, 1)
        assert chosen(compilation, shape_class="channels") == CHANNELS[2]
        spatial_pool(CHANNELS_LAST, 1)
        assert len(compilation.launched) == 3
        assert compilation.launched[1][0] is not compilation.launched[2][0]


def test_a_timed_configuration_may_spill(spills):
    """By this very Triton: it is known to be the fastest."""
    spills({128: 5})
    for version, expected in ((triton.__version__, 0), ("2.0.0", 1)):
        table = table_of(PIXELS[0], source=Source("timed", [version]))
        with targets.compiling_for(TARGET, table) as compilation:
            spatial_pool(X, 2)
            assert chosen(compilation) == PIXELS[expected]


def test_a_configuration_that_is_too_large_fails_over():
    """For real: three stages of 256 keys and values take 295 KB of shared memory."""
    large = {"QUERIES": 16, "KEYS": 256, "CHANNELS": 128, "num_warps": 4, "num_stages": 3}
    table = table_of(large, "attend", "half-few-128", "cuda-86")
    q = CHANNELS_LAST.half()
    v = torch.randn(1, 9, 9, 128).half().permute(0, 3, 1, 2)
    with targets.compiling_for("cuda-86", table) as compilation:
        run(OPERATORS["attention_propagate"], q, q, v)
        assert len(compilation.launched) == 1
        assert compiled.flaw(compilation.launched[0][0]) is None
        assert chosen(compilation, "attend", "half-few-128", "cuda-86")["KEYS"] < 256


def test_an_error_of_the_compiler_fails_over(monkeypatch):
    """And comes through where nothing is left."""
    bad = itertools.chain([RuntimeError("PassManager::run failed"), TritonError()])
    look = compiled.flaw

    def fail(found):
        error = next(bad, None)
        if error is not None:
            raise error
        return look(found)

    monkeypatch.setattr(choices, "flaw", fail)
    with targets.compiling_for(TARGET, FIRST) as compilation:
        spatial_pool(X, 2)
        assert chosen(compilation) == PIXELS[2]
    bad = itertools.repeat(triton.OutOfResources(1, 0, "shared memory"))
    with targets.compiling_for(TARGET, FIRST), pytest.raises(triton.OutOfResources):
        spatial_pool(X, 2)
    bad = itertools.repeat(RuntimeError("illegal memory access"))
    with targets.compiling_for(TARGET, FIRST), pytest.raises(RuntimeError, match="illegal"):
        spatial_pool(X, 2)


def test_it_fails_over_while_a_graph_is_recorded(monkeypatch, spills, clock):
    monkeypatch.setattr(choices, "_capturing", lambda device: True)
    spills({128: 5})
    with targets.compiling_for(TARGET, FIRST) as compilation:
        spatial_pool(X, 2)
        assert chosen(compilation) == PIXELS[1]
        assert len(compilation.launched) == 1
    assert clock == []


# --- the command ----------------------------------------------------------------------------------


def few(device):
    yield "spatial_pool", lambda: spatial_pool(X, 2)


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
    table = json.loads(DEFAULTS.read_text())
    last = pool_candidates("pixels")[-1]
    assert last != table["configurations"][TARGET]["pool"]["pixels"]
    table["configurations"][TARGET]["pool"]["pixels"] = last
    output = tmp_path / "table.json"
    output.write_text(json.dumps(table))
    assert tune.main(["--target", TARGET, "--output", str(output)]) == 0
    assert Table.read(output).find(TARGET, "pool", "pixels") == last


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
    monkeypatch.setattr(tune.backends, "why_unavailable", lambda *_: None)
    monkeypatch.setattr(launch, "current_device", lambda device: contextlib.nullcontext())
    output = tmp_path / "table.json"
    with targets.compiling_for(TARGET):
        assert tune.main(["--output", str(output)]) == 0
    table = Table.read(output)
    assert table.find(TARGET, "pool", "pixels") == pool_candidates("pixels")[-1]
    assert table.sources[TARGET] == Source("timed", [triton.__version__])
    assert len(clock) == len(pool_candidates("pixels"))


def test_a_stop_keeps_what_is_timed(monkeypatch, tmp_path, clock):
    def stopped(device):
        yield from few(device)
        raise KeyboardInterrupt

    monkeypatch.setattr(tune, "workloads", stopped)
    monkeypatch.setattr(tune.backends, "why_unavailable", lambda *_: None)
    monkeypatch.setattr(launch, "current_device", lambda device: contextlib.nullcontext())
    output = tmp_path / "table.json"
    with targets.compiling_for(TARGET), pytest.raises(KeyboardInterrupt):
        tune.main(["--output", str(output)])
    table = Table.read(output)
    assert table.configurations[TARGET] == {"pool": {"pixels": pool_candidates("pixels")[-1]}}
    assert table.sources[TARGET] == Source("timed", [triton.__version__])


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
    table = Table.read()
    assert set(table.sources) == set(table.configurations) == set(targets.NAMES)
    for source in table.sources.values():
        assert source.how in ("timed", "predicted")
        assert source.triton
