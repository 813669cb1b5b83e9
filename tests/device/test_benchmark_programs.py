"""The programs that benchmarks/gpu_oneshot.sh runs, on the CPU: they name what is wrong."""

import csv

import pytest
import samples
import torch

import tdnet_ops


@pytest.fixture
def programs(pytestconfig, monkeypatch):
    """Loads a program of benchmarks/; samples lie on the CPU, whatever --device says."""
    monkeypatch.setattr(samples, "DEVICE", torch.device("cpu"))
    folder = pytestconfig.rootpath / "benchmarks"

    return lambda name: samples.load(folder / f"{name}.py")


@pytest.fixture
def smoke(programs):
    module = programs("gpu_smoke")
    return module, module.Setting("cpu", torch.device("cpu"), True)


def test_a_right_kernel_is_called_right(smoke, capsys):
    module, setting = smoke
    assert module.run_steps(["one_hot"], setting) == 0
    assert capsys.readouterr().out.split()[-2:] == ["3", "right"]


def test_the_first_failure_names_its_kernel_and_what_to_suspect(smoke, capsys, monkeypatch):
    module, setting = smoke
    pool = tdnet_ops.spatial_pool
    monkeypatch.setattr(
        tdnet_ops, "spatial_pool", lambda x, *rest, **named: pool(x, *rest, **named) + 1
    )
    assert module.run_steps(["tiny"], setting) == 6  # three dtypes, two layouts
    first, *_, last = capsys.readouterr().out.splitlines()
    assert "FAILED spatial_pool-middle-" in first
    assert f"6 FAILED of {6 * len(samples.NAMES)}; suspect the architecture" in last


def test_an_error_in_a_kernel_does_not_end_a_step(smoke, capsys, monkeypatch):
    module, setting = smoke

    def broken(*_, **__):
        raise RuntimeError("CUDA kernel pool: invalid argument")

    monkeypatch.setattr(tdnet_ops, "spatial_pool", broken)
    assert module.run_steps(["tiny"], setting) == 6
    assert "CUDA kernel pool: invalid argument" in capsys.readouterr().out


def test_nothing_runs_on_a_lost_device(smoke, capsys, monkeypatch):
    module, setting = smoke
    monkeypatch.setattr(module, "_is_lost", lambda device: True)
    monkeypatch.setattr(tdnet_ops, "spatial_pool", lambda *_, **__: None)
    assert module.run_steps(["tiny", "one_hot"], setting) == 1
    assert "the device is lost" in capsys.readouterr().out


def test_steps_come_in_the_order_of_what_they_say(smoke):
    assert list(smoke[0].STEPS) == [
        "tiny",
        "several_blocks",
        "one_hot",
        "flagship",
        "repeats",
        "poisoned",
        "side_stream",
        "graphs",
        "first_calls",
        "flat",
    ]


def test_the_table_names_the_best_peer_and_what_is_wrong(programs, tmp_path):
    shares = ["median_ms", "ratio", "percent_peak"]
    columns = ["operator", "case", "peer", "role", "status", *shares, "note"]
    rows = [
        ("pool", "large", "cuda", "ours", "timed", "0.5", "", "40.2", ""),
        ("pool", "large", "slow", "peer", "timed", "2.0", "4.0", "10", ""),
        ("pool", "large", "fast", "peer", "timed", "1.0", "2.0", "20", ""),
        ("pool", "large", "faster", "peer", "wrong", "0.1", "0.2", "", "error 1"),
        ("pool", "small", "fastest", "peer", "timed", "0.1", "0.2", "", ""),
        ("argmax", "large", "cuda", "ours", "wrong", "", "", "", "error 3.0e-4"),
    ]
    with (tmp_path / "bench_float16.csv").open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    table = programs("gpu_table")
    heading, pool, argmax = table.operators(tmp_path)
    assert heading.split()[:3] == ["operator", "and", "case"]
    assert pool.split()[:4] == ["pool", "large", "float16", "cuda"]
    assert pool.split()[4:] == ["0.5000", "fast", "2x", "peak", "40%"]
    assert argmax.split() == ["argmax", "large", "float16", "cuda", "wrong:", "error", "3.0e-4"]
    assert table.streams(tmp_path) == []


def test_latency_of_a_model_that_does_not_run_is_told(programs, tmp_path, monkeypatch, capsys):
    latency = programs("streaming_latency")

    def broken(name):
        raise RuntimeError("no kernel\nand a long trace")

    monkeypatch.setattr(latency, "build_model", broken)
    arguments = ["--device", "cpu", "--model", "td4-psp18", "--size", "33x65", "--dtype", "float32"]
    assert latency.main([*arguments, "--csv", str(tmp_path / "l.csv")]) == 1
    rows = list(csv.DictReader((tmp_path / "l.csv").open()))
    assert [row["form"] for row in rows] == ["ours", "optimized", "clip"]
    assert {row["note"] for row in rows} == {"no kernel"}
    assert "nan" in capsys.readouterr().out
