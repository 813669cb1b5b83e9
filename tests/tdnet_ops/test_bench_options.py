"""The benchmark suite for adopters: shapes, heads, backward, memory, JSON, two runs compared."""

import csv
import dataclasses
import json
import types

import pytest
import torch

from tdnet_ops import reference
from tdnet_ops.bench import backward, command, compare, memory, peers, plot, roofs, suite
from tdnet_ops.bench.case import Form, Setting
from tdnet_ops.bench.cases import CASES
from tdnet_ops.bench.shape import case_of_shape
from tdnet_ops.operators import OPERATORS

pytestmark = pytest.mark.usefixtures("quick_bench")

PLAIN = Setting("channels_last", torch.float32, 1)
BACKWARD = dataclasses.replace(PLAIN, backward=True)
TINY = {case.operator: case for case in CASES if case.name == "tiny"}
BLOCKS = {case.name: case for case in CASES if case.group == "blocks"}
DIFFERENTIABLE = [case for case in TINY.values() if OPERATORS[case.operator].differentiable]
PEERS = ["published", "sdpa", "sdpa-linear", "sdpa-math", "sdpa-flash-heads", "reference"]
ENGINES = ["openvino", "onnxruntime"]


def statuses(rows):
    return {row.peer: row.status for row in rows if row.role in ("ours", "peer")}


def run(capsys, *arguments):
    code = command.main(arguments)
    return code, capsys.readouterr().out


# --- shapes and blocks ----------------------------------------------------------------------------


def test_a_shape_is_a_case_of_plain_attention():
    case = case_of_shape("2,10,20,5x7,3x4,5")
    assert str(case) == "attention_propagate 2,10,20,5x7,3x4,5"
    assert case.shapes == "B 2, 5 heads, N 5x7 = 35, M 3x4 = 12, d_k 10, d_v 20"
    problem = case.build(PLAIN)
    q, k, v, residual, weight, bias, scale, heads = problem.arguments
    assert (q.shape, k.shape, v.shape) == ((2, 10, 5, 7), (2, 10, 3, 4), (2, 20, 3, 4))
    assert (residual, weight, bias, scale, heads) == (None, None, None, None, 5)
    assert problem.operations == 2 * 2 * 35 * 12 * (10 + 20)
    assert problem.compulsory_bytes == 4 * 2 * (35 * 10 + 12 * 10 + 12 * 20 + 35 * 20)
    assert case_of_shape("1,4,6,1x3,2x2").build(PLAIN).arguments[-1] == 1


@pytest.mark.parametrize("shape", ["2,10,20,5x7,3x4,5", "3,10,20,5x7,3x4"])
def test_peers_of_shapes_are_right(shape):
    rows = suite.run_case(case_of_shape(shape), PLAIN, [*PEERS, *ENGINES], 0.0)
    expected = [name for name in PEERS if name != "sdpa-linear"]  # there is no phi
    assert statuses(rows).items() >= dict.fromkeys(["cpu", *expected], "timed").items()
    assert "sdpa-linear" not in statuses(rows)
    assert {statuses(rows)[name] for name in ENGINES} <= {"timed", "refused"}
    assert not any("Error" in row.note for row in rows)


@pytest.mark.parametrize("name", ["cvt-13-stage-3", "pvt-small-stage-4", "timm-non-local"])
def test_peers_of_blocks_are_right(name):
    rows = suite.run_case(BLOCKS[name], PLAIN, [*PEERS, *ENGINES], 0.0)
    assert statuses(rows).items() >= dict.fromkeys(["cpu", *PEERS], "timed").items()
    assert {statuses(rows)[name] for name in ENGINES} <= {"timed", "refused"}
    assert not any("Error" in row.note for row in rows)


def test_blocks_have_the_sizes_of_their_models():
    for name, shapes in (
        ("segformer-b2-stage-3", "5 heads, N 32x32 = 1,024, M 16x16 = 256, d_k 320, d_v 320, phi"),
        ("vit-b", "12 heads, N 1x197 = 197, M 1x197 = 197, d_k 768, d_v 768, phi, residual"),
        ("vae-mid-block", "N 64x64 = 4,096, M 64x64 = 4,096, d_k 512, d_v 512, phi, residual"),
        ("timm-non-local", "d_k 128, d_v 128, phi to 1024, residual"),
        ("stm-5-frames", "N 30x54 = 1,620, M 150x54 = 8,100, d_k 128, d_v 512"),
    ):
        assert shapes in BLOCKS[name].shapes
    assert "phi" not in BLOCKS["stm-5-frames"].shapes


def test_phi_is_counted_where_it_is_cheaper():
    def operations(name):
        return BLOCKS[name].build(PLAIN).operations

    assert operations("vit-b") == 2 * 197**2 * 1536 + 2 * 197 * 768**2
    # Folded, 197 x 197 x 1024 in place of 197 x 197 x 128: never.
    assert operations("timm-non-local") == 2 * 196**2 * 256 + 2 * 196 * 128 * 1024


def test_heads_reach_sdpa_as_views():
    seen = []

    def attend(q, k, v):
        seen.extend([q, k, v])
        return torch.nn.functional.scaled_dot_product_attention(q, k, v)

    form = BLOCKS["cvt-13-stage-3"].build(PLAIN).forms["sdpa"]
    form.function(*form.tensors, attend=attend)
    assert [x.shape for x in seen] == [(1, 6, 197, 64), (1, 6, 50, 64), (1, 6, 50, 64)]
    assert all(x.stride()[1:] == (64, 384, 1) for x in seen)


def test_ours_is_the_backend_that_takes_the_heads(monkeypatch):
    case = TINY["attention_propagate"]
    problem = case_of_shape("1,4,4,2x2,2x2,2").build(PLAIN)
    limits = {"cuda": lambda call: "one head only" if call.heads > 1 else None}
    limited = dataclasses.replace(OPERATORS[case.operator], limits=limits)
    monkeypatch.setitem(OPERATORS, case.operator, limited)
    monkeypatch.setattr(peers.backends, "preference", lambda kind: ("cuda", "cpu"))
    monkeypatch.setattr(peers.backends, "why_unavailable", lambda *rest: None)
    assert peers.ours(case, PLAIN, problem.arguments) == "cpu"
    assert peers.ours(case, PLAIN, (*problem.arguments[:-1], 1)) == "cuda"


def test_shapes_are_measured_alone_or_beside_named_cases(capsys, tmp_path):
    path = tmp_path / "results.csv"
    shapes = ("1,4,6,3x3,2x2", "1,4,6,3x3,2x2,2")
    once = ("--threads", "1", "--seconds", "0", "--peers", "published", "--csv", str(path))
    for more, cases in (((), shapes), (("--case", "tiny"), (*TINY, *shapes))):
        assert run(capsys, "--shape", *shapes, *once, *more)[0] == 0
        with path.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["role"] == "ours"]
        assert len(rows) == len(cases)
        assert [row["case"] for row in rows[-2:]] == [*shapes]
        assert {row["status"] for row in rows} == {"timed"}
    _, out = run(capsys, "--list", "--shape", *shapes)
    assert [line.partition(":")[0].split()[-1] for line in out.splitlines()] == [*shapes]


# --- backward -------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", DIFFERENTIABLE, ids=str)
def test_gradients_of_every_peer_are_right(case):
    rows = suite.run_case(case, BACKWARD, [*PEERS, *ENGINES], 0.0)
    expected = ["cpu", *(name for name in PEERS if peers.exists(name, case.build(PLAIN)))]
    assert statuses(rows) == {
        **dict.fromkeys(expected, "timed"),
        **dict.fromkeys(ENGINES, "refused"),
    }
    assert {row.note for row in rows if row.peer in ENGINES} == {"it has no backward pass"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_gradients_in_other_dtypes(dtype):
    setting = Setting("nchw", dtype, 1, backward=True)
    case = case_of_shape("2,10,20,5x7,3x4,5")
    ours = peers.ours(case, setting)
    rows = suite.run_case(case, setting, ["published", "sdpa"], 0.0)
    assert statuses(rows) == dict.fromkeys((ours, "published", "sdpa"), "timed")


@pytest.mark.slow
def test_the_compiled_peer_has_gradients():
    rows = suite.run_case(TINY["attention_propagate"], BACKWARD, ["compile"], 0.0)
    assert statuses(rows) == {"cpu": "timed", "compile": "timed"}


@pytest.mark.parametrize("argument", range(6))
def test_a_wrong_gradient_is_not_timed(argument, monkeypatch):
    """The result is right, and the gradient of one argument 1.01 of what it should be."""

    def form(problem):
        tensors = list(problem.arguments)
        x = tensors[argument]
        tensors[argument] = x.detach() + 1.01 * (x - x.detach())
        return Form(reference.attention_propagate, tuple(tensors))

    monkeypatch.setattr(peers, "_forms", lambda name, problems: [form(x) for x in problems])
    case = TINY["attention_propagate"]
    row = suite.run_case(case, BACKWARD, ["published"], 0.0)[1]
    assert (row.peer, row.status) == ("published", "wrong")
    assert row.error == pytest.approx(0.01, rel=0.01)
    assert suite.run_case(case, PLAIN, ["published"], 0.0)[1].status == "timed"


def test_work_of_a_backward_pass():
    case = case_of_shape("2,10,20,5x7,3x4,5")
    forward, both = case.build(PLAIN), backward.counted(case.build(PLAIN))
    assert both.operations == 3 * forward.operations
    assert both.compulsory_bytes == 2 * forward.compulsory_bytes
    assert both.products[:3] == ((35, 12, 2), (35, 2, 12), (2, 12, 35))
    assert len(both.products) == 3 * len(forward.products)
    pool = TINY["spatial_pool"].build(PLAIN)
    assert backward.counted(pool).operations == pool.operations


def test_a_timed_call_changes_no_layout():
    problem = TINY["attention_propagate"].build(BACKWARD)
    form = problem.forms["sdpa-linear"]
    step = backward.timed_call(form)
    assert all(x.is_leaf for x in step._tensors)
    out, *gradients = step()
    assert [x.shape for x in gradients] == [x.shape for x in form.tensors]
    assert not out.requires_grad
    assert step._incoming[0].stride() == out.stride()


def test_operators_without_gradient_are_named(capsys, tmp_path):
    path = tmp_path / "results.csv"
    arguments = ("--case", "tiny", "--backward", "--peers", "published", "--seconds", "0")
    code, out = run(capsys, *arguments, "--threads", "1", "--csv", str(path))
    assert code == 0
    assert "left out, for they have no gradient: upsample_argmax\n" in out
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["operator"] for row in rows} == {case.operator for case in DIFFERENTIABLE}
    assert {row["pass"] for row in rows} == {"forward and backward"}


# --- memory ---------------------------------------------------------------------------------------

CPU, MEGABYTES = torch.device("cpu"), 10**6


def held(count):
    return torch.zeros(count * MEGABYTES // 4).add_(1)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: held(40), 40),
        (lambda: held(40).sum(), 40),
        (lambda: (held(20), held(8)), 28),
        (lambda: None, 0),
    ],
)
def test_peak_of_a_process(call, expected):
    call()
    assert memory.peak_bytes(call, CPU) == pytest.approx(expected * MEGABYTES, abs=MEGABYTES)
    # Memory that malloc keeps takes nothing of it away.
    held(100)
    assert memory.peak_bytes(call, CPU) == pytest.approx(expected * MEGABYTES, abs=MEGABYTES)


def test_buffers_of_our_kernels_are_in_it():
    """torch.profiler does not see them: the values, projected and packed."""
    q, k = torch.randn(1, 64, 8, 8), torch.randn(1, 64, 64, 64)
    v = torch.randn(1, 512, 64, 64)
    peak = memory.peak_bytes(lambda: torch.ops.tdnet.attention_propagate(q, k, v), CPU)
    packed = 64 * 64 * (64 + 512) * 4
    assert peak >= packed > 10 * 64 * 512 * 4


def test_memory_is_a_column(capsys, tmp_path):
    case = case_of_shape("1,64,64,64x64,32x32")
    rows = suite.run_case(case, PLAIN, ["published", "openvino"], 0.0)
    ours, published = rows[:2]
    result, affinity = 64 * 64 * 64 * 4, 64 * 64 * 32 * 32 * 4
    assert result <= ours.peak_memory_bytes < affinity
    assert published.peak_memory_bytes >= 2 * affinity
    # Engines hold theirs from call to call; roofs are no calls of anybody.
    assert {row.peak_memory_bytes for row in rows[2:]} == {None}
    both = suite.run_case(case, BACKWARD, [], 0.0)[0]
    assert both.peak_memory_bytes > ours.peak_memory_bytes
    _, out = run(capsys, "--shape", case.name, "--seconds", "0", "--threads", "1")
    assert "memory MB" in out


def test_memory_is_unknown_where_the_system_does_not_tell(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_CLEAR", tmp_path / "no" / "such" / "file")
    assert memory.peak_bytes(lambda: None, CPU) is None
    row = suite.run_case(TINY["spatial_pool"], PLAIN, [], 0.0)[0]
    assert (row.status, row.peak_memory_bytes) == ("timed", None)


def test_peak_of_a_device(monkeypatch):
    allocated = types.SimpleNamespace(now=100, most=900, log=[])

    def reset_peak_memory_stats(device):
        allocated.most = allocated.now

    def call():
        allocated.most = 170
        allocated.now = 130

    module = types.SimpleNamespace(
        synchronize=lambda: None,
        reset_peak_memory_stats=reset_peak_memory_stats,
        memory_allocated=lambda device: allocated.now,
        max_memory_allocated=lambda device: allocated.most,
    )
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    assert memory.peak_bytes(call, torch.device("cuda")) == 70


def test_names_of_torch_that_only_a_gpu_runs():
    for module in (torch.cuda, torch.xpu):
        for name in ("reset_peak_memory_stats", "memory_allocated", "max_memory_allocated"):
            assert callable(getattr(module, name))


# --- JSON -----------------------------------------------------------------------------------------


def test_json_holds_what_the_csv_holds(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(suite.memory, "peak_bytes", lambda call, device: float("inf"))
    files = ("--csv", str(tmp_path / "a.csv"), "--json", str(tmp_path / "a.json"))
    once = ("--threads", "1", "--peers", "published", "openvino", "--seconds", "0")
    code, _ = run(capsys, "--case", "tiny", "--op", "spatial_pool", *once, *files)
    assert code == 0
    whole = json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail)
    with (tmp_path / "a.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert whole["stamp"]["pass"] == "forward"
    assert len(whole["rows"]) == len(lines)
    for row, line in zip(whole["rows"], lines, strict=True):
        assert {*row, *whole["stamp"]} == {*line}
        for name, value in row.items():
            known = name != "peak_memory_bytes"  # infinite here, which JSON has no number for
            assert line[name] == ("" if value is None else str(value)) or not known
    assert whole["rows"][0]["peak_memory_bytes"] is None


# --- two runs compared ----------------------------------------------------------------------------


def case_rows(case="tiny", ours=10.0, peak="", copy="", status="timed", **ratios):
    """Rows of ours and its peers (ratios by round, by name; version 1)."""
    run = {"operator": "spatial_pool", "case": case, "disturbed": ""}
    run |= {"dtype": "float32", "layout": "nchw", "threads": "2", "device": "cpu", "cpu": "A"}
    mine = {"role": "ours", "peer": "cpu", "status": status, "median_ms": str(ours)}
    shares = {"percent_peak": str(peak), "percent_copy": str(copy), "ratio_of_rounds": ""}
    rows = [{**run, **mine, **shares, "version": "0"}]
    for peer, ratio in ratios.items():
        told = {"role": "peer", "peer": peer, "version": "1", "status": "timed"}
        rows.append({**run, **told, "median_ms": "1", "ratio_of_rounds": str(ratio)})
    return rows


def changed(then, now):
    (change,) = compare.compare(then, now).changes
    return change


def test_a_busier_machine_is_no_change():
    """Ours and its peers take twice as long."""
    change = changed(case_rows(ours=10, sdpa=2.0), case_rows(ours=20, sdpa=2.0))
    assert (change.then_ms, change.now_ms, change.slower) == (10, 20, 1.0)


def test_ours_is_held_against_the_median_of_its_peers():
    then = case_rows(published=4.0, sdpa=2.0, compile=3.0, reference=9.0)
    now = case_rows(published=4.0, sdpa=1.0, compile=2.0, reference=1.0)
    change = changed(then, now)
    # Our own reference is no peer that stays as it is.
    assert (change.slower, change.against) == (1.5, "3 peers, +0.0% to +100.0%")
    assert changed(now, then).slower == pytest.approx(1 / 1.5)


def test_peers_of_another_version_do_not_count():
    then, now = case_rows(sdpa=2.0, compile=2.0, peak=50), case_rows(sdpa=1.0, compile=2.0, peak=40)
    now[1]["version"] = "2"
    assert changed(then, now).slower == 1.0
    now[2]["version"] = "2"
    change = changed(then, now)
    assert (change.slower, change.against) == (1.25, "the peak")


def test_without_peers_the_closer_roof_counts():
    change = changed(case_rows(peak=2, copy=80), case_rows(peak=4, copy=60))
    assert (change.slower, change.against) == (pytest.approx(80 / 60), "the copy")
    change = changed(case_rows(copy=80), case_rows())
    assert (change.slower, change.against) == (None, "nothing")


def test_cases_are_matched_by_name():
    then = [*case_rows("a", sdpa=1.0), *case_rows("b", sdpa=1.0), *case_rows("c", status="failed")]
    now = [*case_rows("c", sdpa=1.0), *case_rows("b", status="wrong"), *case_rows("d")]
    compared = compare.compare(then, now)
    assert compared.changes == []
    assert compared.broken == ["spatial_pool b"]
    assert compared.missing == ["spatial_pool a (then only)", "spatial_pool d (now only)"]


@pytest.mark.parametrize("setting", ["dtype", "layout", "threads", "device", "pass"])
def test_runs_of_other_settings_do_not_compare(setting):
    now = [{**row, setting: "other"} for row in case_rows()]
    with pytest.raises(ValueError, match=rf"^expected two runs of one {setting}, got '.*' and 'o"):
        compare.compare(case_rows(), now)
    with pytest.raises(ValueError, match="a case in common, got none"):
        compare.compare(case_rows("a"), case_rows("b"))


def write(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, dict.fromkeys(name for row in rows for name in row))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def test_compare_prints_and_fails_above_the_limit(capsys, tmp_path):
    old = write(tmp_path / "old.csv", [*case_rows("a", sdpa=2.1), *case_rows("b", sdpa=1.0)])
    new = [*case_rows("a", ours=30, sdpa=2.0), *case_rows("b", sdpa=3.0)]
    new = [{**row, "cpu": "B", "disturbed": "load average 9"} for row in new]
    new = write(tmp_path / "new.csv", new)
    for limit, code in (((), 0), (("--fail-above", "6%"), 0), (("--fail-above", "4"), 1)):
        exit_code, out = run(capsys, "--compare", old, new, *limit)
        assert exit_code == code
        assert "cpu: A then, B now" in out
        assert "+200.0%" in out  # by the clock
        assert "-66.7%" in out
        line = "slower by +5.0%: spatial_pool a (not quiet now: measure again)"
        assert (line in out) == bool(code)


def test_compare_fails_where_ours_broke(capsys, tmp_path):
    old = write(tmp_path / "old.csv", case_rows())
    new = write(tmp_path / "new.csv", case_rows(status="wrong"))
    code, out = run(capsys, "--compare", old, new)
    assert (code, "no longer timed: spatial_pool tiny\n" in out) == (1, True)


def test_compare_takes_what_the_suite_writes(capsys, tmp_path):
    path = str(tmp_path / "results.csv")
    once = ("--case", "tiny", "--threads", "1", "--seconds", "0", "--peers", "published")
    run(capsys, *once, "--op", "attention_propagate", "spatial_pool", "--csv", path)
    code, out = run(capsys, "--compare", path, path, "--fail-above", "0%")
    assert code == 0
    assert out.count("1 peer") == 2


def test_other_files_do_not_compare(tmp_path):
    (tmp_path / "picture.csv").write_bytes(b"\x89PNG\r\n\x1a\n\x00")
    for path in (tmp_path / "picture.csv", tmp_path, write(tmp_path / "x.csv", [{"a": 1}])):
        with pytest.raises(ValueError, match=str(path)):
            compare.read(tmp_path / path)


# --- the plot -------------------------------------------------------------------------------------


def test_plot_has_grey_marks_of_the_peers(tmp_path, monkeypatch):
    pyplot = plot.load_pyplot()
    rows = suite.run_case(TINY["attention_propagate"], PLAIN, ["published", "sdpa"], 0.0)
    figures = []
    monkeypatch.setattr(pyplot, "close", figures.append)
    plot.write_roofline(
        tmp_path / "roofline.png",
        rows,
        {"device": "a GPU", "dtype": "float32", "layout": "nchw", "pass": "forward"},
    )
    monkeypatch.undo()
    (figure,) = figures
    axes = figure.axes[0]
    assert axes.get_xlabel() == "arithmetic intensity (FLOP/byte)"
    grey = {
        line.get_marker(): line.get_ydata()[0]
        for line in axes.get_lines()
        if line.get_linestyle() == "None" and line.get_color() == "grey"
    }
    expected = {row.peer: row.gflops for row in rows if row.role == "peer"}
    assert list(grey.values()) == [*expected.values()]
    assert len(grey) == 2
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [*expected]
    (ours,) = [line for line in axes.get_lines() if line.get_color() == "C0"]
    marks = [line for line in axes.get_lines() if line.get_marker() in grey]
    assert {line.get_xdata()[0] for line in marks} == {ours.get_xdata()[0]}
    assert roofs.PEAK not in expected
    pyplot.close(figure)
