"""The micro-benchmark suite: its table of cases, its measurements, its files, its refusals."""

import contextlib
import csv
import dataclasses
import functools
import importlib.metadata
import importlib.util
import inspect
import io
import operator
import os
import subprocess
import sys
import types
import warnings

import pytest
import samples
import torch
from PIL import Image
from torch.nn.attention import flex_attention

import tdnet_ops
from tdnet_ops import _library, backends
from tdnet_ops.bench import (
    attention,
    command,
    device,
    engines,
    measure,
    peers,
    plot,
    precision,
    quiet,
    report,
    roofs,
    screen,
    suite,
)
from tdnet_ops.bench.case import Graph, Node, Setting
from tdnet_ops.bench.cases import CASES

PLAIN = Setting("channels_last", torch.float32, 1)
CPU, GPU = torch.device("cpu"), torch.device("cuda")
TINY = {case.operator: case for case in CASES if case.name == "tiny"}
INSTALLED_ENGINES = [
    name
    for name in ("openvino", "onnxruntime")
    if importlib.util.find_spec(name) and importlib.util.find_spec("onnx")
]

pytestmark = pytest.mark.usefixtures("quick_bench")
in_every_operator = pytest.mark.parametrize("case", TINY.values(), ids=TINY)


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


def measure_tiny(capsys, path, *operators, peers=("published",), more=()):
    """The command on the tiny cases of operators (none: of all), in one round; rows of the file."""
    which = ["--op", *operators] if operators else []
    arguments = ["--case", "tiny", *which, "--threads", "1", "--peers", *peers, "--seconds", "0"]
    code, out, err = run(capsys, *arguments, "--csv", str(path), *more)
    return code, out, err, list(csv.DictReader(io.StringIO(path.read_text())))


def row_of(rows, peer):
    (row,) = [row for row in rows if row.peer == peer]
    return row


# --- the table of cases ---------------------------------------------------------------------------


def test_every_case_has_a_name_of_its_own():
    assert len(set(map(str, CASES))) == len(CASES)
    assert not {case.name for case in CASES} & {case.group for case in CASES}
    usual = {case.operator for case in CASES if not case.on_request}
    assert usual == set(TINY) == set(samples.NAMES)


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
    case = TINY["attention_propagate"]
    problem = case.build(PLAIN)
    n, m, d_k, d_v = 63, 20, 64, 32
    # phi folded: over the m pooled keys.
    assert problem.operations == 2 * n * m * (d_k + d_v) + 2 * m * d_v * d_v
    numbers = n * d_k + m * d_k + m * d_v + d_v * d_v + d_v + 2 * n * d_v
    assert problem.compulsory_bytes == 4 * numbers


# Layouts change addresses and dtypes arithmetic: three pairs are enough for every day.
EVERY_DAY = [("nchw", torch.float16), ("channels_last", torch.bfloat16), ("nchw", torch.float64)]
OTHERS = [("channels_last", torch.float16), ("nchw", torch.bfloat16)]
OTHERS += [("channels_last", torch.float64)]


@pytest.mark.parametrize(
    "pairs", [EVERY_DAY, pytest.param(OTHERS, marks=pytest.mark.slow)], ids=["some", "others"]
)
@in_every_operator
def test_half_and_double_precision_and_both_layouts(case, pairs):
    for layout, dtype in pairs:
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
        assert row.role in ("roof", "product") or row.error <= 1e-4
        assert (row.rounds, row.timing, row.input_sets) == (1, "clock", 1)
        assert 0 < row.q20_ms <= row.median_ms <= row.q80_ms


def test_compiled_peer_is_right():
    case = TINY["spatial_pool"]
    row = row_of(suite.run_case(case, PLAIN, ["compile"], 0.0), "compile")
    assert (row.status, row.role) == ("timed", "peer")


def test_ratios_and_rates():
    case = TINY["attention_propagate"]
    problem = case.build(PLAIN)
    rows = suite.run_case(case, PLAIN, ["published"], 0.0)
    ours, published, peak = rows[0], row_of(rows, "published"), row_of(rows, roofs.PEAK)
    mm, shapes, copy = (row_of(rows, name) for name in (roofs.MM, roofs.MM_SHAPES, roofs.COPY))
    assert [x.role for x in (peak, mm, shapes, copy)] == ["roof", "product", "product", "roof"]
    assert ours.ratio is None
    assert published.ratio == pytest.approx(published.median_ms / ours.median_ms)
    assert ours.gflops == pytest.approx(problem.operations / ours.median_ms / 1e6)
    assert ours.gbps == pytest.approx(problem.compulsory_bytes / ours.median_ms / 1e6)
    assert peak.percent_peak == shapes.percent_mm_shapes == copy.percent_copy == 100
    for row in (ours, published):
        assert None not in (row.percent_peak, row.percent_mm_shapes, row.percent_copy)
    assert mm.percent_peak == pytest.approx(100 * mm.gflops / peak.gflops)
    assert mm.operations == 2 * 16**3
    assert peak.operations == 2 * 384 * 4 * 10
    assert peak.gbps is None
    assert shapes.operations == problem.operations
    assert copy.gflops is None


def test_shares_are_taken_round_by_round():
    times = {
        "cpu": measure.Times((1.0, 2.0, 9.0), 1),
        roofs.PEAK: measure.Times((2.0, 4.0, 6.0), 1),
    }
    work = {"cpu": (30, 7), roofs.PEAK: (10, 1)}
    assert suite._percent(work, times, "cpu", roofs.PEAK, 0) == 100 * 3 * 2
    assert suite._percent(work, times, "cpu", roofs.COPY, 1) is None
    assert suite._percent({**work, "cpu": (0, 7)}, times, "cpu", roofs.PEAK, 0) is None


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_engine_that_is_not_installed_is_refused(name, monkeypatch):
    missing(monkeypatch, name, "onnx")
    rows = suite.run_case(ATTENTION, PLAIN, [name], 0.0)
    row = row_of(rows, name)
    assert (row.status, row.median_ms) == ("refused", None)
    assert "is not installed (pip install " in row.note
    assert rows[0].status == "timed"


def test_engine_that_does_not_load_is_refused(monkeypatch):
    def import_module(name):
        raise ImportError("libtbb.so.12: cannot open shared object file")

    monkeypatch.setattr(engines.importlib, "import_module", import_module)
    row = row_of(suite.run_case(ATTENTION, PLAIN, ["openvino"], 0.0), "openvino")
    assert "libtbb.so.12" in row.note


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_engines_refuse_other_dtypes(name):
    setting = Setting("nchw", torch.bfloat16, 1)
    row = row_of(suite.run_case(ATTENTION, setting, [name], 0.0), name)
    assert (row.status, row.note) == ("refused", "its graphs are float32, got bfloat16")


def test_backends_that_cannot_run_are_refused():
    row = row_of(suite.run_case(ATTENTION, PLAIN, ["cuda"], 0.0), "cuda")
    reason = backends.why_unavailable("cuda", "spatial_pool", torch.device("cpu"), torch.float32)
    assert (row.status, row.note) == ("refused", reason)


def test_a_peer_that_crashes_is_refused(monkeypatch):
    def crash(graph, setting):
        def call():
            raise RuntimeError("out of luck\nsecond line")

        return call

    monkeypatch.setitem(peers._ENGINES, "openvino", crash)
    row = row_of(suite.run_case(ATTENTION, PLAIN, ["openvino"], 0.0), "openvino")
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
    case = TINY["upsample_argmax"]
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


# --- attention kernels as peers -------------------------------------------------------------------

ATTENTION = TINY["attention_propagate"]


def attend(q, k, v):
    return torch.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, -1) @ v


def flash_attn_func(q, k, v):
    """[B, tokens, heads, channels], as many of the values as of the keys, half precision."""
    assert q.dtype == k.dtype == v.dtype == torch.float16
    assert k.shape == v.shape
    assert q.shape[2:] == k.shape[2:]
    return attend(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


def flash_attn_func_3(q, k, v):
    """As above for any channels of the values, with the sums."""
    assert k.shape[:3] == v.shape[:3]
    return attend(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2), torch.zeros(1)


def single_prefill_with_kv_cache(q, k, v):
    """[tokens, heads, channels]."""
    assert k.shape == v.shape
    assert q.shape[1:] == k.shape[1:]
    return attend(*(x.transpose(0, 1) for x in (q, k, v))).transpose(0, 1)


def ffpa_attn_func(query, key, value, scale):
    """As scaled_dot_product_attention, one width for all."""
    assert query.shape[-1] == key.shape[-1] == value.shape[-1] == 320
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=scale)


def memory_efficient_attention(q, k, v):
    return flash_attn_func_3(q, k, v)[0]


@pytest.fixture
def packages(monkeypatch):
    """Stand-ins with the signatures and layouts of the packages, which need a GPU."""
    for module, function in (
        ("flash_attn", flash_attn_func),
        ("flash_attn_interface", flash_attn_func_3),
        ("flashinfer", single_prefill_with_kv_cache),
        ("ffpa_attn", ffpa_attn_func),
        ("xformers.ops", memory_efficient_attention),
    ):
        named = types.SimpleNamespace(
            **{function.__name__.removesuffix("_3"): function}, __spec__=None
        )
        monkeypatch.setitem(sys.modules, module, named)
    monkeypatch.setitem(sys.modules, "xformers", types.SimpleNamespace(__path__=[]))


@pytest.mark.parametrize("name", ["flash-attn", "flash-attn-3", "flashinfer", "xformers"])
def test_packages_get_their_layouts(name, packages):
    half = Setting("channels_last", torch.float16, 1)
    rows = suite.run_case(ATTENTION, half, [name, "published"], 0.0)
    row = row_of(rows, name)
    assert (row.status, row.note) == ("timed", "")
    kernel = attention.KERNELS[name](torch.float16)
    for batch, heads in ((1, 1), (1, 3), (2, 3)):
        # More value channels than key channels: more heads, the last of them padded.
        q, k, v = (torch.randn(batch, heads, *x) for x in ((7, 16), (5, 16), (5, 40)))
        out = kernel(*(x.half() for x in (q, k, v)))
        torch.testing.assert_close(out.float(), attend(q, k, v), rtol=1e-2, atol=1e-2)


def test_ffpa_gets_one_width_and_the_scale_of_the_keys(packages):
    kernel = attention.KERNELS["ffpa-padded"](torch.float16)
    q, k, v = (torch.randn(2, 3, *x) for x in ((7, 16), (5, 16), (5, 300)))
    out = kernel(*(x.half() for x in (q, k, v)))
    torch.testing.assert_close(out.float(), attend(q, k, v), rtol=1e-2, atol=1e-2)
    half = Setting("channels_last", torch.float16, 1)
    row = row_of(suite.run_case(ATTENTION, half, ["ffpa-padded"], 0.0), "ffpa-padded")
    note = "made for 257 to 1024 channels, else it calls SDPA, got 64"
    assert (row.status, row.note) == ("refused", note)


@pytest.mark.parametrize("name", ["flash-attn", "flash-attn-3", "flashinfer", "ffpa-padded"])
def test_packages_for_half_precision_refuse_float32(name, packages):
    row = row_of(suite.run_case(ATTENTION, PLAIN, [name], 0.0), name)
    assert (row.status, row.note) == ("refused", "it takes float16 and bfloat16 only")


@pytest.mark.parametrize("name", attention.DISTRIBUTIONS)
def test_packages_that_are_missing_are_refused(name, monkeypatch):
    packages = ("flash_attn", "flash_attn_interface", "flashinfer", "ffpa_attn", "xformers")
    missing(monkeypatch, *packages)
    row = row_of(suite.run_case(ATTENTION, PLAIN, [name], 0.0), name)
    assert row.status == "refused"
    assert "is not installed (" in row.note
    # An index might have a stranger's package of a module's name.
    assert "pip install flash_attn" not in row.note
    assert row.version == ""


def test_what_a_package_misses_is_not_guessed(monkeypatch):
    def import_module(name):
        raise ModuleNotFoundError("No module named 'einops'", name="einops")

    monkeypatch.setattr(engines.importlib, "import_module", import_module)
    with pytest.raises(engines.Refusal, match=r"^einops is not installed \(flash_attn needs it\)$"):
        engines.load("flash_attn")


@pytest.mark.parametrize("name", ["sdpa-math", "sdpa-flash-heads"])
def test_kernels_of_sdpa_that_a_cpu_has(name):
    assert row_of(suite.run_case(ATTENTION, PLAIN, [name], 0.0), name).status == "timed"


@pytest.mark.parametrize("name", ["sdpa-efficient", "sdpa-cudnn", "sdpa-cudnn-heads"])
def test_kernels_of_sdpa_that_a_cpu_has_not(name):
    row = row_of(suite.run_case(ATTENTION, PLAIN, [name], 0.0), name)
    assert (row.status, row.note != "") == ("refused", True)


def test_flex_attention_is_compiled_once(monkeypatch):
    compiled = []

    def compile_nothing(function, dynamic):
        compiled.append((function, dynamic))
        return function

    monkeypatch.setattr(torch, "compile", compile_nothing)
    monkeypatch.setattr(flex_attention, "flex_attention", attend)
    rotating = Setting("channels_last", torch.float32, 1, cache_bytes=10**5)
    row = row_of(suite.run_case(ATTENTION, rotating, ["flex"], 0.0), "flex")
    assert (row.status, row.input_sets > 1) == ("timed", True)
    assert compiled == [(attend, False)]


def test_warnings_explain_a_refusal():
    def call():
        for line in (1, 2):
            text = f"the last dimension differs (Triggered internally at sdp.cpp:{line}.)\nmore"
            warnings.warn(text, stacklevel=1)
        raise RuntimeError("No available kernel.")

    with pytest.raises(engines.Refusal) as caught:
        peers.run_once(call)
    assert str(caught.value) == "RuntimeError: No available kernel.; the last dimension differs"


def test_usual_peers():
    on_cpu, on_gpu = peers.usual(CPU, 1.0), peers.usual(GPU, 1.0)
    assert set(on_cpu) == set(peers.NAMES) - set(attention.KERNELS)
    assert set(on_gpu) == set(peers.NAMES) - {"openvino", "onnxruntime"}
    assert set(on_cpu) - set(peers.usual(CPU, 0.0)) == {"compile"} == set(peers.slow(CPU))
    assert set(on_gpu) - set(peers.usual(GPU, 0.0)) == {"compile", "flex"}


# --- roofs ----------------------------------------------------------------------------------------


def sets_of_this_cpu():
    compiled, in_use = (tdnet_ops.build_info()["cpu"][key] for key in ("compiled", "in_use"))
    return compiled[: compiled.index(in_use) + 1]


# The library alone, which is quicker to import than the package.
MULTIPLY_ADDS = """
import importlib.util, torch
spec = importlib.util.spec_from_file_location("_C", {library!r})
assert importlib.util.module_from_spec(spec).cpu_in_use == {instruction_set!r}
x = torch.randn(384 * 9)
for steps in (0, 1, 5):
    expected = x
    for _ in range(steps):
        expected = expected * 0.5 + 0.5
    torch.testing.assert_close(torch.ops.tdnet_bench.multiply_adds(x, steps), expected)
"""


def test_multiply_adds():
    for threads, steps in ((1, 5), (2, 0), (2, 3)):
        torch.set_num_threads(threads)
        x = torch.randn(384 * 9)
        expected = functools.reduce(lambda y, _: y * 0.5 + 0.5, range(steps), x)
        torch.testing.assert_close(torch.ops.tdnet_bench.multiply_adds(x, steps), expected)


@pytest.mark.parametrize("instruction_set", sets_of_this_cpu()[:-1])
def test_multiply_adds_of_lower_instruction_sets(instruction_set):
    library = _library._C.__file__
    code = MULTIPLY_ADDS.format(library=library, instruction_set=instruction_set)
    environment = {**os.environ, "TDNET_CPU_ISA": instruction_set}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd="/")


def test_multiply_adds_take_whole_blocks():
    for wrong, got in (
        (torch.ones(383), r"torch.float32 \[383\]"),
        (torch.ones(384, dtype=torch.float64), r"torch.float64 \[384\]"),
        (torch.ones(768)[::2], r"torch.float32 \[384\]"),
        (torch.ones(2, 384), r"torch.float32 \[2, 384\]"),
    ):
        with pytest.raises(RuntimeError, match=rf"x: expected .*\[blocks \* 384\], got {got}"):
            torch.ops.tdnet_bench.multiply_adds(wrong, 1)
    with pytest.raises(RuntimeError, match="steps: expected at least 0, got -1"):
        torch.ops.tdnet_bench.multiply_adds(torch.ones(384), -1)


def test_float64_has_half_the_peak():
    problem = ATTENTION.build(PLAIN)
    single, double = (
        roofs.measured_roofs(problem, Setting("nchw", dtype, 2))[roofs.PEAK].operations
        for dtype in (torch.float32, torch.float64)
    )
    assert single == 2 * double == 2 * 384 * 4 * 2 * 10


def test_peak_of_a_gpu_is_a_large_product(monkeypatch):
    asked = []

    def square(size, dtype, where):
        asked.append((size, dtype, where))
        return roofs.Roof(lambda: None, 1, 1)

    monkeypatch.setattr(roofs, "_square", square)
    monkeypatch.setattr(roofs, "_products", square)
    monkeypatch.setattr(roofs, "_copy", square)
    monkeypatch.setattr(roofs, "_copy", lambda count, where: square(count, None, where))
    setting = Setting("nchw", torch.bfloat16, 1, GPU)
    measured = roofs.measured_roofs(ATTENTION.build(PLAIN), setting)
    assert list(measured) == [roofs.PEAK, roofs.MM_SHAPES, roofs.COPY]
    assert asked[0] == (8192, torch.bfloat16, GPU)


def test_large_operands_are_made_once():
    problem = ATTENTION.build(PLAIN)
    first, second = (roofs.measured_roofs(problem, PLAIN) for _ in range(2))
    assert first[roofs.MM] is second[roofs.MM]
    assert first[roofs.COPY] is second[roofs.COPY]


# --- float32 stays float32 ------------------------------------------------------------------------


# Every flag of reduced precision, old and new, and what torch is imported with; None: follows.
FLAGS = {
    "cuda.matmul.allow_tf32": None,
    "cudnn.allow_tf32": True,
    "fp32_precision": "none",
    "cudnn.fp32_precision": "none",
    "mkldnn.fp32_precision": "none",
    "cuda.matmul.fp32_precision": "none",
    "mkldnn.conv.fp32_precision": "none",
    "mkldnn.matmul.fp32_precision": "none",
    "cudnn.conv.fp32_precision": "tf32",
    "cudnn.rnn.fp32_precision": "tf32",
}


def flags():
    """Of all FLAGS; torch refuses to tell some."""

    def read(getter):
        try:
            return getter()
        except RuntimeError:
            return "refused"

    found = {name: read(lambda n=name: operator.attrgetter(n)(torch.backends)) for name in FLAGS}
    return found, read(torch.get_float32_matmul_precision)


def set_flag(name, value):
    *path, last = name.split(".")
    setattr(functools.reduce(getattr, path, torch.backends), last, value)


def reset_flags():
    torch.set_float32_matmul_precision("highest")
    for name, value in FLAGS.items():
        if value is not None:
            set_flag(name, value)


@contextlib.contextmanager
def user_sets(name, value):
    """A user's choice in place of torch's defaults, which stand again afterwards."""
    reset_flags()
    before = flags()
    if name == "float32_matmul_precision":
        torch.set_float32_matmul_precision(value)
    else:
        set_flag(name, value)
    try:
        yield
    finally:
        reset_flags()
        assert flags() == before


CHOICES = [
    ("cudnn.allow_tf32", True),
    ("cudnn.allow_tf32", False),
    ("cuda.matmul.allow_tf32", True),
    ("float32_matmul_precision", "medium"),
    ("float32_matmul_precision", "high"),
    ("fp32_precision", "tf32"),
    ("cudnn.fp32_precision", "ieee"),
    ("cudnn.conv.fp32_precision", "ieee"),
    ("cuda.matmul.fp32_precision", "tf32"),
    ("mkldnn.conv.fp32_precision", "bf16"),
]


@pytest.mark.parametrize(("name", "value"), CHOICES)
def test_ieee_holds_and_restores_the_user_s_choice(name, value):
    with user_sets(name, value):
        chosen = flags()
        with contextlib.suppress(KeyError), precision.ieee():
            inside = [setting.fp32_precision for setting in precision._settings()]
            raise KeyError  # A case that fails restores them too.
        assert inside == ["ieee"] * 5
        assert flags() == chosen


def test_reference_ours_and_peers_compute_in_float32(monkeypatch):
    seen = []

    def operator(*rest, backend):
        seen.append((backend, torch.backends.cudnn.conv.fp32_precision))
        return real(*rest, backend=backend)

    real = tdnet_ops.block_sum_reduce
    monkeypatch.setattr(tdnet_ops, "block_sum_reduce", operator)
    case = TINY["block_sum_reduce"]
    with user_sets("cudnn.allow_tf32", True):
        suite.run_case(case, PLAIN, ["reference"], 0.0)
    assert set(seen) == {("cpu", "ieee"), ("reference", "ieee")}


# --- timing ---------------------------------------------------------------------------------------


def test_rounds_are_interleaved_and_rotated():
    log = []

    def turn(name):
        log.append(name)
        return 1.0

    bursts = {name: measure.Burst(functools.partial(turn, name), 3) for name in "abc"}
    # A budget too small for a second round: as many as a median needs are done all the same.
    times = measure.interleave(bursts, 1e-9)
    assert all(one.rounds == (1.0,) * measure.MINIMUM_ROUNDS for one in times.values())
    assert all(one.calls_a_round == 3 for one in times.values())
    rounds = ["".join(log[i : i + 3]) for i in range(0, len(log), 3)]
    assert rounds == ["abc", "acb", "cab", "cba", "bca"]


def test_no_seconds_are_one_round():
    log = []
    bursts = {name: measure.Burst(lambda: log.append(0) or 1.0, 1) for name in "abc"}
    times = measure.interleave(bursts, 0.0)
    assert [one.rounds for one in times.values()] == [(1.0,)] * 3
    assert len(log) == 3


def test_short_calls_are_repeated(monkeypatch):
    monkeypatch.setattr(measure, "BURST_SECONDS", 0.01)
    calls = []
    burst = measure.clock_burst(lambda: calls.append(0))
    assert burst.calls > 100
    done = len(calls)
    assert burst.seconds() < 1e-3
    assert len(calls) - done == burst.calls + 1


def test_quantiles_and_ratio_of_rounds():
    ours = measure.Times((1.0, 2.0, 3.0, 4.0, 10.0), 1)
    peer = measure.Times((2.0, 4.0, 6.0, 8.0, 5.0), 1)
    assert (ours.median, ours.quantile(0.0), ours.quantile(1.0)) == (3.0, 1.0, 10.0)
    assert ours.quantile(0.2) == pytest.approx(1.8)
    assert measure.ratio_of_rounds(peer, ours) == 2.0
    assert measure.Times((7.0,), 1).quantile(0.8) == 7.0


# --- timing on a GPU, on a stand-in for its clock -------------------------------------------------


class Events:
    """A device whose calls take the seconds they say, each launch `gap` more outside graphs."""

    def __init__(self, gap):
        self.now, self.gap, self.recording = 0.0, gap, None
        self.Event = functools.partial(_Event, self)

    def launch(self, seconds):
        if self.recording is not None:
            self.recording.append(seconds)
        else:
            self.now += max(seconds, self.gap)

    def replay(self, recorded):
        self.now += sum(recorded)


class _Event:
    def __init__(self, events, enable_timing):
        assert enable_timing
        self.events, self.at, self.waited = events, None, False

    def record(self):
        self.at = self.events.now

    def synchronize(self):
        self.waited = True

    def elapsed_time(self, end):
        assert end.waited
        return (end.at - self.at) * 1e3  # in milliseconds, as torch's


@pytest.fixture
def gpu(monkeypatch):
    """torch's names of a GPU, as the suite calls them."""
    events = Events(gap=50e-6)

    class Graph:
        def __init__(self):
            self.recorded = []

        def replay(self):
            events.replay(self.recorded)

    @contextlib.contextmanager
    def record(graph, capture_error_mode):
        assert capture_error_mode == "thread_local"
        events.recording = graph.recorded
        try:
            yield
        finally:
            events.recording = None

    monkeypatch.setattr(torch, "get_device_module", lambda where: events)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", record)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(measure, "BURST_SECONDS", 0.01)
    return events


def test_names_of_torch_that_only_a_gpu_runs():
    assert inspect.signature(torch.cuda.graph).parameters["capture_error_mode"]
    assert callable(torch.cuda.CUDAGraph.replay)
    for module in (torch.cuda, torch.xpu):
        assert inspect.signature(module.Event.__new__).parameters["enable_timing"]
        for name in ("record", "synchronize", "elapsed_time"):
            assert callable(getattr(module.Event, name))
        assert callable(module.get_device_properties)


def test_short_calls_are_timed_without_their_launches(gpu):
    burst = device.device_burst([lambda: gpu.launch(5e-6)], GPU)
    assert burst.timing == "graph"
    assert burst.seconds() == pytest.approx(5e-6)
    assert burst.calls * 5e-6 == pytest.approx(0.01, rel=0.2)


def test_long_calls_are_timed_by_events(gpu):
    burst = device.device_burst([lambda: gpu.launch(1e-3)], GPU)
    assert (burst.timing, burst.calls) == ("events", 10)
    assert burst.seconds() == pytest.approx(1e-3)


def test_calls_that_cannot_be_recorded_are_timed_by_events(gpu):
    def call():
        if gpu.recording is not None:
            raise RuntimeError("operation not permitted when stream is capturing")
        gpu.launch(5e-6)

    burst = device.device_burst([call], GPU)
    assert burst.timing == "events"
    assert burst.seconds() == pytest.approx(50e-6)


def test_a_device_without_graphs_is_timed_by_events(gpu):
    assert device.device_burst([lambda: gpu.launch(5e-6)], torch.device("xpu")).timing == "events"


def test_every_set_has_its_turn_in_graphs_and_bursts(gpu):
    for seconds, timing in ((5e-6, "graph"), (1e-3, "events")):
        log = []

        def call(which, seconds=seconds, log=log):
            log.append(which)
            gpu.launch(seconds)

        burst = device.device_burst([functools.partial(call, i) for i in range(3)], GPU)
        assert burst.timing == timing
        burst.seconds()
        assert log == [i % 3 for i in range(len(log))]
        # The calls of a graph are whole rotations, so that its replays go on rotating.
        assert timing == "events" or burst.calls % 3 == 0


def test_results_live_until_their_turn_comes_again():
    made = iter(range(9))
    rotation = device.Rotation([lambda: next(made)] * 3)
    for _ in range(5):
        rotation()
    assert rotation._results == [3, 4, 2]


def test_sets_outgrow_the_cache():
    for case_bytes, cache in ((10, 100), (7, 100), (99, 100), (1000, 100)):
        sets = device.input_sets(case_bytes, cache)
        assert (sets - 1) * case_bytes >= cache
        assert (sets - 2) * case_bytes < cache
    assert device.input_sets(1, 10**9) == device.MOST_INPUT_SETS


def test_cache_of_a_device(monkeypatch):
    for properties, expected in (
        ({"L2_cache_size": 50}, 50),
        ({"last_level_cache_size": 60}, 60),
        ({}, 128 * 2**20),
    ):
        module = types.SimpleNamespace(
            get_device_properties=lambda where, p=properties: types.SimpleNamespace(**p)
        )
        monkeypatch.setattr(torch, "get_device_module", lambda where, m=module: m)
        assert device.cache_bytes(GPU) == expected


def test_calls_rotate_among_sets(monkeypatch):
    seen = set()

    def operator(x, *rest, backend):
        if backend == "cpu":
            seen.add(x.data_ptr())
        return real(x, *rest, backend=backend)

    real = tdnet_ops.spatial_pool
    monkeypatch.setattr(tdnet_ops, "spatial_pool", operator)
    case = TINY["spatial_pool"]
    sets = device.input_sets(case.build(PLAIN).compulsory_bytes, 10_000)
    monkeypatch.setattr(measure, "BURST_SECONDS", 0.001)
    setting = Setting("nchw", torch.float32, 1, cache_bytes=10_000)
    rows = suite.run_case(case, setting, ["published"], 0.0)
    assert len(seen) == sets == rows[0].input_sets == row_of(rows, "published").input_sets > 1
    assert row_of(rows, roofs.COPY).input_sets == 1


def test_data_is_cold_on_a_gpu_unless_it_shall_be_warm(monkeypatch):
    monkeypatch.setattr(command, "cache_bytes", lambda where: 50)
    options = command._parser().parse_args([])
    assert command._setting(options).cache_bytes == 0
    options.device = GPU
    assert command._setting(options).cache_bytes == 50
    options.warm = True
    assert command._setting(options).cache_bytes == 0


# --- a machine that is not quiet ------------------------------------------------------------------


def timed(peer, role, median=1.0, q20=1.0, q80=1.0, gflops=None, gbps=None):
    return suite.Row(
        *("spatial_pool", "tiny", "", peer, "", role, "timed"),
        **{"median_ms": median, "q20_ms": q20, "q80_ms": q80, "gflops": gflops, "gbps": gbps},
    )


def test_load_is_noticed(monkeypatch):
    watch = quiet.Watch(2)
    monkeypatch.setattr(os, "getloadavg", lambda: (2.0, 9.0, 9.0))
    assert watch.load() == []
    monkeypatch.setattr(os, "getloadavg", lambda: (2.6, 0.0, 0.0))
    assert watch.load() == ["load average 2.6 with 2 threads of ours"]
    # The run itself keeps its threads busy, and a little more.
    assert watch.signs([]) == []
    monkeypatch.setattr(os, "getloadavg", lambda: (3.1, 0.0, 0.0))
    assert watch.signs([]) == ["load average 3.1 with 2 threads of ours"]


def test_spread_and_slow_roofs_are_noticed(monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    watch = quiet.Watch(2)
    steady = [timed("cpu", "ours", q80=1.2), timed("copy", "roof", gbps=20.0)]
    assert watch.signs([*steady, timed("peak", "roof", gflops=400.0)]) == []
    assert watch.signs([timed("cpu", "ours", q80=2.0), timed("sdpa", "peer", q20=0.25)]) == [
        "wide spread between rounds, q80 over q20: cpu 2.0x, sdpa 4.0x"
    ]
    assert watch.signs([timed("peak", "roof", gflops=300.0), timed("copy", "roof", gbps=19.0)]) == [
        "peak at 300 GFLOP/s, 400 at its best"
    ]


def test_signs_are_printed_and_written(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (77.0, 0.0, 0.0))
    path = tmp_path / "results.csv"
    code, out, _, rows = measure_tiny(capsys, path, "spatial_pool")
    assert code == 0
    sign = "load average 77.0 with 1 threads of ours"
    assert f"not quiet, before the first case: {sign}" in out
    assert f"not quiet: {sign}" in out
    assert "not quiet in 1 of 1 cases: measure again on an idle machine" in out
    assert rows
    assert all(sign in row["disturbed"] for row in rows)


def test_a_case_where_nothing_was_timed_has_no_spread():
    row = suite.Row("spatial_pool", "tiny", "", "cpu", "", "ours", "failed", note="RuntimeError")
    assert not any("spread" in sign for sign in quiet.Watch(10**6).signs([row]))


# --- the command ----------------------------------------------------------------------------------


def test_list_names_every_case(capsys):
    code, out, _ = run(capsys, "--list")
    assert code == 0
    assert [line.partition(":")[0] for line in out.splitlines()] == [str(case) for case in CASES]
    code, out, _ = run(capsys, "--list", "--op", "spatial_pool", "--case", "tiny")
    assert (code, len(out.splitlines())) == (0, 1)


def test_tiny_and_blocks_are_measured_only_if_named():
    options = command._parser().parse_args([])
    left_out = [case for case in CASES if case not in command._selected(options)]
    assert {case.group or case.name for case in left_out} == {"tiny", "blocks"}
    options = command._parser().parse_args(["--case", "blocks", "psp-360x480-max"])
    selected = command._selected(options)
    blocks = [case for case in CASES if case.group == "blocks"]
    assert len(blocks) > 10
    assert [*blocks, TINY["spatial_pool"].operator] == [*selected[:-1], selected[-1].operator]


def test_csv(capsys, tmp_path, monkeypatch):
    missing(monkeypatch, "openvino", "onnx")
    path = tmp_path / "results.csv"
    path.write_text("what was there before")
    operators, names = ("attention_propagate", "upsample_argmax"), ("published", "openvino")
    code, out, _, rows = measure_tiny(capsys, path, *operators, peers=names)
    assert code == 0
    everybody = ["cpu", "published", "openvino", "peak", "torch.mm", "torch.mm, shapes", "copy"]
    assert [(row["operator"], row["peer"]) for row in rows] == [
        (operator, peer)
        for operator in operators
        for peer in everybody
        if (operator, peer) != ("upsample_argmax", "torch.mm, shapes")
    ]
    assert {row["peer"] for row in rows if row["status"] != "timed"} == {"openvino"}
    assert {row["status"] for row in rows if row["peer"] == "openvino"} == {"refused"}
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
    code, _, err, rows = measure_tiny(capsys, path)
    assert (code, "interrupted" in err) == (130, True)
    measured = list(TINY)[: list(TINY).index("pooled_affinity")]
    assert list(dict.fromkeys(row["operator"] for row in rows)) == measured


def test_every_column_of_a_gpu_fits_a_file(capsys):
    names = peers.usual(GPU, 1.0)
    (case,) = [case for case in CASES if str(case) == "block_sum_reduce td2-psp50-value-769x1537"]
    rows = [
        dataclasses.replace(timed(name, "peer"), operator=case.operator, case=case.name, ratio=1234)
        for name in names
    ]
    ours = dataclasses.replace(rows[0], peer="cuda", role="ours", ratio=None)
    screen.screen().show(report.table_of_ratios([ours, *rows]))
    out = capsys.readouterr().out
    assert all(f" {name} " in out for name in names)
    assert out.count("1,234x") == len(names)
    assert str(case) in out


def test_without_rich_tables_are_plain(capsys, tmp_path, monkeypatch):
    for name in ("rich", "rich.console"):
        monkeypatch.setitem(sys.modules, name, None)
    path = tmp_path / "results.csv"
    code, out, err, _ = measure_tiny(capsys, path, "spatial_pool", "upsample_argmax")
    assert (code, err) == (0, "")
    title, columns, *rows = out[out.index("spatial_pool tiny: ") :].splitlines()[:4]
    assert title.startswith("spatial_pool tiny: ")
    assert [row.split()[0] for row in rows] == ["cpu", "published"]
    # Numbers end where their heading does.
    assert {len(row) for row in rows} == {len(columns)}
    assert "How many times longer than ours" in out


def test_a_single_round_compiles_nothing(capsys):
    code, out, _ = run(capsys, "--case", "tiny", "--op", "spatial_pool", "--seconds", "0")
    assert code == 0
    assert "left out, for they compile: compile; see --peers" in out
    assert "\n  compile" not in out


def test_budget_is_shared_and_ends_the_run(capsys, tmp_path, monkeypatch):
    now, asked = [0.0], []

    def run_case(case, setting, names, seconds):
        asked.append((case.operator, seconds))
        now[0] += 30.0
        return suite.run_case(case, setting, [], 0.0)

    monkeypatch.setattr(command, "run_case", run_case)
    monkeypatch.setattr(command.time, "monotonic", lambda: now[0])
    path = tmp_path / "results.csv"
    arguments = ["--case", "tiny", "--seconds", "9", "--budget", "70", "--csv", str(path)]
    code, _, err = run(capsys, *arguments)
    assert code == 0
    # 70 s for all cases, then 40 s for one less, then 10 s for two less.
    count = len(TINY)
    seconds = [min(9.0, 70 / count), 40 / (count - 1), 10 / (count - 2)]
    assert asked == [(x, pytest.approx(y)) for x, y in zip(TINY, seconds, strict=False)]
    missing = ", ".join(map(str, [*TINY.values()][3:]))
    assert err.rstrip().endswith(f"the budget is spent, not measured: {missing}")
    rows = list(csv.DictReader(io.StringIO(path.read_text())))
    assert list(dict.fromkeys(row["operator"] for row in rows)) == [name for name, _ in asked]


def test_a_budget_reaches_every_operator_first():
    usual = [case for case in CASES if not case.on_request]
    ordered = command._one_of_each_first(usual)
    operators = [case.operator for case in ordered]
    assert operators[: len(TINY)] == list(TINY)
    assert ordered[0].name == "psp-769x1537"
    assert len(ordered) == len(set(map(str, ordered))) == len(usual)
    assert operators[len(TINY) :][:2] == list(TINY)[:2]


def test_a_case_that_fails_does_not_take_the_others_along(capsys, tmp_path, monkeypatch):
    def run_case(case, *rest):
        if case.operator == "spatial_pool":
            raise RuntimeError("CUDA error: an illegal memory access\nmore")
        return suite.run_case(case, *rest)

    drawn = []
    monkeypatch.setattr(command, "run_case", run_case)
    monkeypatch.setattr(plot, "write_roofline", lambda path, rows, stamped: drawn.extend(rows))
    path = tmp_path / "results.csv"
    operators, plotted = ("spatial_pool", "upsample_argmax"), ("--plot", str(tmp_path / "a.png"))
    code, out, _, rows = measure_tiny(capsys, path, *operators, more=plotted)
    assert code == 1
    assert "spatial_pool tiny failed: RuntimeError: CUDA error: an illegal memory access\n" in out
    assert (rows[0]["operator"], rows[0]["status"]) == ("spatial_pool", "failed")
    assert {row["status"] for row in rows[1:]} == {"timed"}
    assert {row.operator for row in drawn if row.status == "timed"} == {"upsample_argmax"}


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (None, "-"),
        (0.0, "0"),
        (0.000546, "0.000546"),
        (0.00312, "0.00312"),
        (0.5, "0.500"),
        (3.14159, "3.14"),
        (41.26, "41.3"),
        (1234.5, "1,234"),
        (float("inf"), "inf"),
    ],
)
def test_numbers_keep_their_digits(number, expected):
    assert report.digits(number) == expected
    assert report._ratio(number) == (expected if number is None else f"{expected}x")


def test_ours_wrong_fails(capsys, monkeypatch, tmp_path):
    def broken(q, *rest, backend):
        out = reference(q, *rest, backend="reference")
        return out + 1 if backend == "cpu" else out

    reference = tdnet_ops.attention_propagate
    monkeypatch.setattr(tdnet_ops, "attention_propagate", broken)
    path = tmp_path / "results.csv"
    code, out, _, rows = measure_tiny(capsys, path, "attention_propagate", "spatial_pool")
    assert code == 1
    assert "cpu is wrong at attention_propagate tiny, not timed: error" in out
    assert [(row["peer"], row["status"]) for row in rows[:3]] == [
        ("cpu", "wrong"),
        ("published", "right"),
        ("cpu", "timed"),
    ]


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
        (["--budget", "-3"], "expected seconds from 0, got '-3'"),
        (["--csv", "no/such/folder/a.csv"], "writable folder, got 'no/such/folder/a.csv'"),
        (["--plot", "."], "expected a file name"),
        (["--op", "spatial_pool", "--case", "fanet-769x1537"], "keys-769x1537-max"),
        (["--op", "spatial_pool", "--shape", "1,2,2,3x3,3x3"], "got --op spatial_pool"),
        (["--shape", "1,2,2,3x3"], "expected B,dk,dv,HxW,hxw[,heads]"),
        (["--shape", "1,2,2,3x3,3x0"], "whole numbers from 1, got '1,2,2,3x3,3x0'"),
        (["--shape", "1,2,3,3x3,3x3,2"], "multiples of the 2 heads, got '1,2,3,3x3,3x3,2'"),
        (["--op", "upsample_argmax", "--backward"], "--backward: upsample_argmax: no gradient"),
        (["--json", "no/such/folder/a.json"], "writable folder, got 'no/such/folder/a.json'"),
        (["--fail-above", "5%"], "expected --compare beside it"),
        (["--fail-above", "much", "--compare", "a", "b"], "from 0 such as 5%, got 'much'"),
        (["--compare", "none.csv", "none.csv"], "none.csv: No such file or directory"),
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


def test_plot_has_the_peak_for_its_roof():
    pyplot = plot.load_pyplot()
    rows = [
        timed("cpu", "ours", gflops=300.0),
        timed("peak", "roof", gflops=400.0),
        timed("torch.mm", "product", gflops=200.0),
        timed("copy", "roof", gbps=20.0),
    ]
    figure, axes = pyplot.subplots()
    plot._draw_roofs(axes, rows, [4.0])
    roof, product = axes.get_lines()
    assert list(roof.get_ydata()) == [40.0, 400.0, 400.0]
    assert list(roof.get_xdata())[1] == 20.0
    assert set(product.get_ydata()) == {200.0}
    assert [text.get_text() for text in axes.texts] == [
        "peak 400 GFLOP/s",
        "torch.mm 200",
        "copy 20.0 GB/s",
    ]
    plot._draw_roofs(axes, [row for row in rows if row.role != "product"], [4.0])  # a GPU's
    assert len(axes.get_lines()) == 3
    pyplot.close(figure)


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
