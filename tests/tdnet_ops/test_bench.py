"""The micro-benchmark suite: its table of cases, its measurements, its files, its refusals."""

import csv
import importlib.metadata
import importlib.util
import inspect
import io

import pytest
import samples
import torch
from PIL import Image

import tdnet_ops
from tdnet_ops import backends
from tdnet_ops.bench import command, engines, measure, peers, report, roofs, suite
from tdnet_ops.bench.case import Graph, Node, Setting
from tdnet_ops.bench.cases import CASES

PLAIN = Setting("channels_last", torch.float32, 1)
TINY = [case for case in CASES if case.name == "tiny"]
INSTALLED_ENGINES = [
    name
    for name in ("openvino", "onnxruntime")
    if importlib.util.find_spec(name) and importlib.util.find_spec("onnx")
]

in_every_operator = pytest.mark.parametrize("case", TINY, ids=lambda case: case.operator)


@pytest.fixture(autouse=True)
def _small_roofs(monkeypatch):
    """Roofs that take no time, and memory that no test needs."""
    monkeypatch.setattr(roofs, "SQUARE", 16)
    monkeypatch.setattr(roofs, "COPY_BYTES", 4096)
    monkeypatch.setattr(measure, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(measure, "BURST_SECONDS", 0.0)


def missing(monkeypatch, *names):
    """Makes packages look not installed."""
    real = engines.importlib.import_module

    def import_module(name):
        if name.partition(".")[0] in names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name)

    monkeypatch.setattr(engines.importlib, "import_module", import_module)


def run(capsys, *arguments):
    """Exit code, stdout and stderr of the command."""
    try:
        code = command.main(arguments)
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def row_of(rows, peer):
    (row,) = [row for row in rows if row.peer == peer]
    return row


# --- the table of cases ---------------------------------------------------------------------------


def test_every_public_operator_has_cases():
    assert {case.operator for case in CASES} == set(samples.NAMES)
    operators = [name for name in tdnet_ops.__all__ if hasattr(torch.ops.tdnet, name)]
    assert {case.operator for case in CASES if not case.on_request} == set(operators)
    assert len({(case.operator, case.name) for case in CASES}) == len(CASES)


def test_the_sizes_of_the_models_are_there():
    shapes = {str(case): case.shapes for case in CASES}
    for case, numbers in (
        ("attention_propagate psp-769x1537", ("97x193 = 18,721", "25x49 = 1,225", "d_v 512")),
        ("attention_propagate psp-769x1537-inner", ("N 25x49 = 1,225", "M 25x49 = 1,225")),
        ("attention_propagate fanet-769x1537", ("97x193 = 18,721", "d_v 256")),
        ("attention_propagate bise-1024x2048", ("= 32,768", "= 2,048", "d_v 128")),
        ("attention_propagate psp-360x480", ("= 2,700", "= 180")),
        ("upsample_argmax psp-769x1537", ("19 classes", "97x193 -> 769x1537", "align_corners")),
    ):
        assert all(number in shapes[case] for number in numbers)


@in_every_operator
def test_arguments_are_those_of_the_operator(case):
    problem = case.build(PLAIN)
    bound = inspect.signature(getattr(tdnet_ops, case.operator)).bind(*problem.arguments)
    maps = [x for x in bound.arguments.values() if isinstance(x, torch.Tensor) and x.dim() == 4]
    assert all(x.dtype == torch.float32 for x in maps)
    assert problem.compulsory_bytes > 0
    nchw = case.build(Setting("nchw", torch.float64, 1)).arguments
    for x, y in zip(problem.arguments, nchw, strict=True):
        if isinstance(x, torch.Tensor):
            assert y.is_contiguous()
            assert y.dtype == torch.float64
            torch.testing.assert_close(x.double(), y, rtol=1e-6, atol=1e-6)


def test_counts_of_attention():
    (case,) = [case for case in TINY if case.operator == "attention_propagate"]
    problem = case.build(PLAIN)
    n, m, d_k, d_v = 63, 20, 64, 32
    # phi folded: over the m pooled keys.
    assert problem.operations == 2 * n * m * (d_k + d_v) + 2 * m * d_v * d_v
    numbers = n * d_k + m * d_k + m * d_v + d_v * d_v + d_v + 2 * n * d_v
    assert problem.compulsory_bytes == 4 * numbers


@in_every_operator
def test_half_and_double_precision_and_both_layouts(case):
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        for layout in ("nchw", "channels_last"):
            rows = suite.run_case(case, Setting(layout, dtype, 1), ["published"], 0.0)
            assert [row.status for row in rows] == ["timed"] * len(rows)


# --- peers ----------------------------------------------------------------------------------------


@in_every_operator
def test_peers_are_right(case):
    names = ["published", "sdpa", "sdpa-linear", "argmax", "reference", *INSTALLED_ENGINES]
    problem = case.build(PLAIN)
    rows = suite.run_case(case, PLAIN, names, 0.0)
    assert (rows[0].peer, rows[0].role) == ("cpu", "ours")
    expected = [name for name in names if peers.exists(name, problem)]
    assert [row.peer for row in rows if row.role == "peer"] == expected
    for row in rows:
        assert (row.status, row.note) == ("timed", "")
        assert row.role == "roof" or row.error <= 1e-4
        assert row.rounds >= measure.MINIMUM_ROUNDS
        assert 0 < row.q20_ms <= row.median_ms <= row.q80_ms


def test_compiled_peer_is_right():
    (case,) = [case for case in TINY if case.operator == "spatial_pool"]
    row = row_of(suite.run_case(case, PLAIN, ["compile"], 0.0), "compile")
    assert (row.status, row.role) == ("timed", "peer")


def test_ratios_and_rates():
    (case,) = [case for case in TINY if case.operator == "attention_propagate"]
    problem = case.build(PLAIN)
    rows = suite.run_case(case, PLAIN, ["published"], 0.0)
    ours, published = rows[0], row_of(rows, "published")
    mm, shapes, copy = (row_of(rows, name) for name in (roofs.MM, roofs.MM_SHAPES, roofs.COPY))
    assert ours.ratio is None
    assert published.ratio == pytest.approx(published.median_ms / ours.median_ms)
    assert ours.gflops == pytest.approx(problem.operations / ours.median_ms / 1e6)
    assert ours.gbps == pytest.approx(problem.compulsory_bytes / ours.median_ms / 1e6)
    assert mm.percent_mm == shapes.percent_mm_shapes == copy.percent_copy == 100
    assert None not in (ours.percent_mm, ours.percent_mm_shapes, ours.percent_copy)
    assert mm.operations == 2 * 16**3
    assert shapes.operations == problem.operations
    assert copy.gflops is None


def test_shares_are_taken_round_by_round():
    times = {"cpu": measure.Times((1.0, 2.0, 9.0), 1), roofs.MM: measure.Times((2.0, 4.0, 6.0), 1)}
    work = {"cpu": (30, 7), roofs.MM: (10, 1)}
    assert suite._percent(work, times, "cpu", roofs.MM, 0) == 100 * 3 * 2
    assert suite._percent(work, times, "cpu", roofs.COPY, 1) is None
    assert suite._percent({**work, "cpu": (0, 7)}, times, "cpu", roofs.MM, 0) is None


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_engine_that_is_not_installed_is_refused(name, monkeypatch):
    missing(monkeypatch, name, "onnx")
    rows = suite.run_case(TINY[0], PLAIN, [name], 0.0)
    row = row_of(rows, name)
    assert (row.status, row.median_ms) == ("refused", None)
    assert "is not installed (pip install " in row.note
    assert rows[0].status == "timed"


def test_engine_that_does_not_load_is_refused(monkeypatch):
    def import_module(name):
        raise ImportError("libtbb.so.12: cannot open shared object file")

    monkeypatch.setattr(engines.importlib, "import_module", import_module)
    row = row_of(suite.run_case(TINY[0], PLAIN, ["openvino"], 0.0), "openvino")
    assert "libtbb.so.12" in row.note


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_engines_refuse_other_dtypes(name):
    setting = Setting("nchw", torch.bfloat16, 1)
    row = row_of(suite.run_case(TINY[0], setting, [name], 0.0), name)
    assert (row.status, row.note) == ("refused", "its graphs are float32, got bfloat16")


def test_backends_that_cannot_run_are_refused():
    row = row_of(suite.run_case(TINY[0], PLAIN, ["cuda"], 0.0), "cuda")
    reason = backends.refusal("cuda", torch.device("cpu"), torch.float32)
    assert (row.status, row.note) == ("refused", reason)


def test_a_peer_that_crashes_is_refused(monkeypatch):
    def crash(graph, setting):
        def call():
            raise RuntimeError("out of luck\nsecond line")

        return call

    monkeypatch.setitem(peers._ENGINES, "openvino", crash)
    row = row_of(suite.run_case(TINY[0], PLAIN, ["openvino"], 0.0), "openvino")
    assert (row.status, row.note) == ("refused", "RuntimeError: out of luck")


@pytest.mark.parametrize("wrong", [lambda x: x + 1e-2, lambda x: x * float("nan"), lambda x: x[1:]])
@in_every_operator
def test_a_wrong_peer_is_not_timed(case, wrong, monkeypatch):
    def engine(graph, setting):
        operator = getattr(tdnet_ops, case.operator)
        right = operator(*case.build(PLAIN).arguments)
        if isinstance(right, torch.Tensor):
            return lambda: wrong(right.float()) if case.operator != "upsample_argmax" else right + 1
        return lambda: (right[0], wrong(right[1]))

    monkeypatch.setitem(peers._ENGINES, "openvino", engine)
    row = row_of(suite.run_case(case, PLAIN, ["openvino"], 0.0), "openvino")
    assert (row.status, row.median_ms) == ("wrong", None)
    assert not row.error <= 1e-4
    assert "allowed 1.0e-04" in row.note


def test_labels_may_differ_only_at_ties():
    (case,) = [case for case in TINY if case.operator == "upsample_argmax"]
    problem = case.build(PLAIN)
    right = tdnet_ops.upsample_argmax(*problem.arguments)
    assert problem.error(right.long(), right) == 0
    other = right.clone()
    other[0, 3, 4] = (other[0, 3, 4] + 1) % 5
    assert problem.error(other, right) > 1e-3
    assert problem.error(right + 5, right) == float("inf")
    assert problem.error(right[:, 1:], right) == float("inf")


@pytest.mark.parametrize("name", INSTALLED_ENGINES)
def test_engines_read_and_write_in_place(name):
    x, y = torch.arange(6.0).view(2, 3), torch.zeros(2, 3)
    graph = Graph({"x": x}, {"c": torch.ones(3)}, (Node("Add", ("x", "c"), "y"),), {"y": y}, y)
    call = getattr(engines, name)(graph, PLAIN)
    assert call() is y
    assert y.tolist() == [[1, 2, 3], [4, 5, 6]]
    x += 10
    call()
    assert y.tolist() == [[11, 12, 13], [14, 15, 16]]


# --- timing ---------------------------------------------------------------------------------------


def test_what_runs_on_is_waited_for():
    """Before a burst, and after it while the clock runs."""
    happened = []
    call, wait = (lambda what=what: happened.append(what) for what in ("call", "wait"))
    measure.interleave({"one": call}, 0.0, wait)
    text = "".join(what[0] for what in happened)
    assert text == "c" + "wcw" * (1 + measure.MINIMUM_ROUNDS)


def test_rounds_are_interleaved_and_rotated():
    log = []
    calls = {name: (lambda name=name: log.append(name)) for name in "abc"}
    times = measure.interleave(calls, 0.0)
    assert all(len(one.rounds) == measure.MINIMUM_ROUNDS for one in times.values())
    # Two calls each find the length of a burst, which is one here.
    assert log[:6] == list("aabbcc")
    rounds = ["".join(log[i : i + 3]) for i in range(6, len(log), 3)]
    assert rounds == ["abc", "acb", "cab", "cba", "bca"]


def test_short_calls_are_repeated(monkeypatch):
    monkeypatch.setattr(measure, "BURST_SECONDS", 0.01)
    times = measure.interleave({"short": lambda: None}, 0.0)["short"]
    assert times.calls_a_round > 100
    assert times.median < 1e-3


def test_quantiles_and_ratio_of_rounds():
    ours = measure.Times((1.0, 2.0, 3.0, 4.0, 10.0), 1)
    peer = measure.Times((2.0, 4.0, 6.0, 8.0, 5.0), 1)
    assert (ours.median, ours.quantile(0.0), ours.quantile(1.0)) == (3.0, 1.0, 10.0)
    assert ours.quantile(0.2) == pytest.approx(1.8)
    assert measure.ratio_of_rounds(peer, ours) == 2.0
    assert measure.Times((7.0,), 1).quantile(0.8) == 7.0


# --- the command ----------------------------------------------------------------------------------


def test_list_names_every_case(capsys):
    code, out, _ = run(capsys, "--list")
    assert code == 0
    assert [line.partition(":")[0] for line in out.splitlines()] == [str(case) for case in CASES]
    code, out, _ = run(capsys, "--list", "--op", "spatial_pool", "--case", "tiny")
    assert (code, len(out.splitlines())) == (0, 1)


def test_tiny_is_measured_only_if_named():
    options = command._parser().parse_args([])
    assert {case.name for case in CASES} - {case.name for case in command._selected(options)} == {
        "tiny"
    }


def test_csv(capsys, tmp_path, monkeypatch):
    missing(monkeypatch, "openvino", "onnx")
    path = tmp_path / "results.csv"
    path.write_text("what was there before")
    arguments = ["--case", "tiny", "--op", "attention_propagate", "upsample_argmax", "--threads"]
    arguments += ["1", "--peers", "published", "openvino", "--seconds", "0", "--csv", str(path)]
    code, out, _ = run(capsys, *arguments)
    assert code == 0
    rows = list(csv.DictReader(io.StringIO(path.read_text())))
    assert [(row["operator"], row["peer"], row["status"]) for row in rows] == [
        ("attention_propagate", "cpu", "timed"),
        ("attention_propagate", "published", "timed"),
        ("attention_propagate", "openvino", "refused"),
        ("attention_propagate", "torch.mm", "timed"),
        ("attention_propagate", "torch.mm, shapes", "timed"),
        ("attention_propagate", "copy", "timed"),
        ("upsample_argmax", "cpu", "timed"),
        ("upsample_argmax", "published", "timed"),
        ("upsample_argmax", "openvino", "refused"),
        ("upsample_argmax", "torch.mm", "timed"),
        ("upsample_argmax", "copy", "timed"),
    ]
    for row in rows:
        assert row["command"].startswith("python -m tdnet_ops.bench --case tiny --op attention")
        assert row["instruction_set"] == tdnet_ops.build_info()["cpu"]["in_use"]
        assert (row["threads"], row["layout"], row["dtype"]) == ("1", "channels_last", "float32")
        assert (row["tdnet"], row["torch"]) == (tdnet_ops.__version__, str(torch.__version__))
        assert row["cpu"]
        if row["status"] == "timed":
            assert float(row["median_ms"]) > 0
        else:
            assert row["median_ms"] == ""
            assert "not installed" in row["note"]
    assert [item.name for item in tmp_path.iterdir()] == ["results.csv"]
    # The reason is the same for both operators.
    assert out.count("is not installed") == 1
    assert "How many times longer than ours" in out


def test_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "results.csv"
    path.write_text("before")

    def fail_half_way():
        with report.whole_file(path) as part:
            part.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        fail_half_way()
    assert path.read_text() == "before"
    assert [item.name for item in tmp_path.iterdir()] == ["results.csv"]


def test_interrupt_keeps_finished_cases(capsys, tmp_path, monkeypatch):
    path = tmp_path / "results.csv"

    def interrupted(case, *rest):
        if case.operator == "pooled_affinity":
            raise KeyboardInterrupt
        return suite.run_case(case, *rest)

    monkeypatch.setattr(command, "run_case", interrupted)
    arguments = ["--case", "tiny", "--peers", "published", "--seconds", "0", "--csv", str(path)]
    code, _, err = run(capsys, *arguments)
    assert (code, "interrupted" in err) == (130, True)
    rows = list(csv.DictReader(io.StringIO(path.read_text())))
    assert {row["operator"] for row in rows} == {"attention_propagate"}


def test_ours_wrong_fails(capsys, monkeypatch):
    def broken(q, *rest, backend):
        out = reference(q, *rest, backend="reference")
        return out + 1 if backend == "cpu" else out

    reference = tdnet_ops.attention_propagate
    monkeypatch.setattr(tdnet_ops, "attention_propagate", broken)
    arguments = ["--case", "tiny", "--op", "attention_propagate", "--seconds", "0"]
    code, out, _ = run(capsys, *arguments, "--peers", "published")
    assert code == 1
    assert "cpu is wrong at attention_propagate tiny, not timed: error" in out


def test_peer_without_a_form_is_named(capsys):
    arguments = ["--case", "tiny", "--op", "spatial_pool", "--seconds", "0", "--peers", "sdpa"]
    code, out, _ = run(capsys, *arguments)
    assert code == 0
    assert "sdpa: none of these operators has such a form" in out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--op", "nothing"], "attention_propagate"),
        (["--case", "nothing"], "psp-769x1537"),
        (["--peers", "nothing"], "openvino"),
        (["--layout", "nothing"], "channels_last"),
        (["--dtype", "int8"], "bfloat16"),
        (["--threads", "0"], "expected a whole number from 1, got '0'"),
        (["--threads", "two"], "got 'two'"),
        (["--seconds", "-1"], "expected seconds from 0, got '-1'"),
        (["--seconds", "nan"], "got 'nan'"),
        (["--csv", "no/such/folder/a.csv"], "writable folder, got 'no/such/folder/a.csv'"),
        (["--plot", "."], "expected a file name"),
        (["--op", "spatial_pool", "--case", "fanet-769x1537"], "keys-769x1537-max"),
        (["--what"], "--what"),
        (["extra"], "extra"),
    ],
)
def test_bad_arguments_are_one_line(arguments, expected, capsys):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("tdnet_ops.bench: ")
    assert expected in err
    assert err.count("\n") == 1


# --- the plot -------------------------------------------------------------------------------------


def test_plot_is_a_png(capsys, tmp_path):
    path = tmp_path / "roofline.png"
    arguments = ["--case", "tiny", "psp-360x480-max", "--peers", "published", "--seconds", "0"]
    arguments += ["--op", "attention_propagate", "spatial_pool", "--plot", str(path)]
    code, _, _ = run(capsys, *arguments)
    assert code == 0
    with Image.open(path) as picture:
        picture.load()
        assert picture.format == "PNG"
        assert min(picture.size) > 400
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 10
    assert [item.name for item in tmp_path.iterdir()] == ["roofline.png"]


def test_plot_without_matplotlib_is_one_line(capsys, tmp_path, monkeypatch):
    missing(monkeypatch, "matplotlib")
    code, out, err = run(capsys, "--case", "tiny", "--plot", str(tmp_path / "roofline.png"))
    assert (code, out) == (2, "")
    assert "matplotlib is not installed" in err
    assert err.count("\n") == 1


def test_versions_of_peers():
    assert peers.version("reference") == tdnet_ops.__version__
    assert peers.version("published") == str(torch.__version__)
    for name in INSTALLED_ENGINES:
        assert peers.version(name) == importlib.metadata.version(name)
