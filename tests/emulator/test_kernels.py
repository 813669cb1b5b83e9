"""The CUDA kernels and launchers of csrc/cuda, run by the emulator on the samples of all tests."""

import math
import re
import zlib

import emulator
import pytest
import run_samples
import samples
import torch
from samples.marks import with_half_slow

from tdnet_ops import reference

ROUTE = {"emulator": lambda name: getattr(torch.ops.tdnet_emulator, name)}
SCHEDULES = [(seed, copies) for seed in (0, 1, 2) for copies in emulator.COPIES]


@pytest.fixture(autouse=True)
def settings(operators, monkeypatch):
    """The default schedule before and after, and results that start as NaN."""
    monkeypatch.setattr(samples, "ROUTES", ROUTE)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    operators.set()
    yield
    operators.set()
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


# --- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("sample", samples.SAMPLES, ids=str)
def test_sample_is_right(operators, sample):
    """By one schedule each, drawn by name; the samples together run all of them."""
    operators.set(*schedule_of(sample))
    run_samples.check(sample)


def schedule_of(sample):
    return SCHEDULES[zlib.crc32(str(sample).encode()) % len(SCHEDULES)]


@with_half_slow(samples.TILE_SAMPLES)
def test_sample_of_tiles_is_right(operators, sample):
    operators.set(*schedule_of(sample))
    run_samples.check(sample)


SPLIT = samples.select(
    None,
    operators=["attention_propagate", "softmax_propagate", "pooled_affinity"],
    layouts=["contiguous", "channels_last"],
    among=samples.TILE_SAMPLES,
)


@with_half_slow(SPLIT)
def test_sample_is_right_on_a_narrow_device(operators, sample):
    """Where one block fills the device, keys are not split."""
    operators.set(*schedule_of(sample), multiprocessors=1)
    run_samples.check(sample)


WIDE_TILES = samples.select(
    None,
    ["contiguous", "channels_last"],
    [torch.float16, torch.bfloat16],
    ["attention_propagate"],
    samples.TILE_SAMPLES,
)


@pytest.mark.parametrize("multiprocessors", [1, 8])
@with_half_slow(WIDE_TILES)
def test_sample_of_tiles_is_right_with_little_shared_memory(operators, sample, multiprocessors):
    operators.set(
        *schedule_of(sample),
        most_shared=emulator.LITTLE_SHARED,
        multiprocessors=multiprocessors,
    )
    run_samples.check(sample)


# --- the ends of the range of numbers -------------------------------------------------------------

HUGE = {torch.float32: 4e36, torch.bfloat16: 4e36, torch.float16: 6e4}


def attend(logits, values, dtype, key_channels):
    """By both operators, split where there are many keys: the same logits for 3 queries."""
    count = len(logits)
    q = torch.zeros(1, key_channels, 1, 3, dtype=dtype)
    k = torch.zeros(1, key_channels, 1, count, dtype=dtype)
    q[:, 0], k[0, 0, 0] = 1.0, torch.tensor(logits)
    v = torch.tensor(values).expand(1, 8, 1, count).to(dtype)
    ops = torch.ops.tdnet_emulator
    affinity = torch.tensor(logits).expand(1, 3, count).to(dtype)
    yield ops.attention_propagate(q, k, v, None, None, None, 1.0)
    yield ops.softmax_propagate(affinity, v, [1, 3], None, None, None)


@pytest.mark.parametrize("multiprocessors", [1, 8])
@pytest.mark.parametrize("key_channels", [5, 64])
@pytest.mark.parametrize("dtype", HUGE)
@pytest.mark.parametrize("count", [100, 500])
def test_means_do_not_overflow(operators, dtype, key_channels, multiprocessors, count):
    operators.set(multiprocessors=multiprocessors)
    for result in attend([0.0] * count, [HUGE[dtype]] * count, dtype, key_channels):
        value = torch.tensor(HUGE[dtype]).to(dtype).double()
        torch.testing.assert_close(result.double(), value.expand_as(result), rtol=1e-5, atol=0)


# bfloat16 has the exponents of float32, but numbers below 2^-126 lose digits.
SMALL = {torch.float32: 1e-5, torch.bfloat16: 2**-7}


@pytest.mark.parametrize("multiprocessors", [1, 8])
@pytest.mark.parametrize("between", [0, 300])
@pytest.mark.parametrize("key_channels", [5, 64])
@pytest.mark.parametrize("dtype", SMALL)
def test_small_weights_count(operators, dtype, key_channels, between, multiprocessors):
    """Down to exp(-103) as in torch's softmax, in one part of the keys or another."""
    operators.set(multiprocessors=multiprocessors)
    # The tensor core kernel leaves out weights below 2^(-113 + log2(keys)) in bfloat16.
    tensor_cores = dtype == torch.bfloat16 and key_channels == 64
    lowest, largest = (-72.0, 2.8e28) if tensor_cores else (-88.0, 1e38)
    logits, values = [0.0, *[-1e4] * between, lowest], [0.0, *[0.0] * between, largest]
    for result in attend(logits, values, dtype, key_channels):
        expected = torch.full_like(result, math.exp(lowest) * largest, dtype=torch.float64)
        torch.testing.assert_close(result.double(), expected, rtol=SMALL[dtype], atol=0)


@pytest.mark.parametrize("between", [0, 300])
@pytest.mark.parametrize("key_channels", [5, 64])
def test_small_weights_of_infinity_count(operators, key_channels, between):
    logits, values = [0.0, *[-50.0] * between, -88.0], [0.0, *[1.0] * between, torch.inf]
    for result in attend(logits, values, torch.float32, key_channels):
        assert (result == torch.inf).all()


WHOLE = samples.select(
    ["middle", "wide", "dilated", "odd_channels"],
    ["contiguous", "channels_last"],
    [torch.float32, torch.float16, torch.bfloat16],
)


@with_half_slow(WHOLE)
def test_results_do_not_depend_on_the_schedule(operators, sample):
    """To the last bit: the kernels leave no choice to the order of threads, blocks and copies."""
    call = getattr(torch.ops.tdnet_emulator, sample.operator)
    results = []
    for seed, copies in SCHEDULES:
        operators.set(seed, copies)
        results.append(samples.tensors([call(*sample.arguments())]))
    for result in results[1:]:
        for actual, first in zip(result, results[0], strict=True):
            assert torch.equal(actual, first)


WIDE = samples.select(["wide", "deep", "odd_channels"], ["contiguous"], samples.DTYPES[::2])


@pytest.mark.parametrize("sample", WIDE, ids=str)
def test_sample_is_right_with_little_shared_memory(operators, sample):
    operators.set(1, most_shared=emulator.LITTLE_SHARED)
    run_samples.check(sample)


TENSOR_CORES = ["pooled_affinity", "softmax_propagate", "attention_propagate", "block_sum_reduce"]
TF32 = samples.select(
    None,
    ["contiguous", "channels_last"],
    [torch.float32],
    run_samples.TENSOR_CORES,
    samples.TILE_SAMPLES,
)


@with_half_slow(TF32)
def test_sample_is_right_in_tf32(operators, sample):
    operators.set(*schedule_of(sample))
    run_samples.check_tf32(sample)


@pytest.mark.parametrize("operator", TENSOR_CORES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_tf32_only_where_allowed(operators, operator, layout):
    (sample,) = samples.select(["wide", "dilated"], [layout], [torch.float32], [operator])
    call = getattr(torch.ops.tdnet_emulator, operator)
    arguments = sample.arguments()
    with operators.counting() as full:
        call(*arguments)
    with operators.counting() as rounded:
        actual = call(*arguments, allow_tf32=True)
    assert full.matrix_products == 0
    assert rounded.matrix_products > 0
    exact = getattr(reference, operator)(*samples.widen(arguments))
    # Every operand loses 13 of 23 bits.
    error = (actual.double() - exact).abs().max() / exact.abs().max()
    assert 1e-6 < error < 4e-3


@pytest.mark.parametrize("operator", TENSOR_CORES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_uses_tensor_cores(operators, operator, dtype):
    (sample,) = samples.select(["wide", "dilated"], ["channels_last"], [dtype], [operator])
    with operators.counting() as counts:
        getattr(torch.ops.tdnet_emulator, operator)(*sample.arguments())
    assert counts.matrix_products > 0
    assert counts.copies > 0


def test_a_failing_kernel_raises(operators):
    """What the emulator finds reaches Python as an error that names the kernel."""
    operators.set(most_shared=1 << 10)
    (sample,) = samples.select(["wide"], ["contiguous"], [torch.float32], ["softmax_propagate"])
    with pytest.raises(RuntimeError, match=r"CUDA kernel \w+: .*shared memory"):
        run_samples.check(sample)


@pytest.mark.parametrize("size", [(46_341, 46_341), (1, 2**31 - 1024)])
def test_more_pixels_than_a_kernel_can_count_are_refused(operators, size):
    """Nor the end of the last tile of pixels."""
    x = torch.zeros(1, 1, 1, 1).expand(1, 1, *size)
    pixels = size[0] * size[1]
    with pytest.raises(RuntimeError, match=rf"x: expected at most \d+ pixels, got {pixels}"):
        torch.ops.tdnet_emulator.spatial_pool(x, size[1], "subsample")


def test_more_partials_than_a_kernel_can_sum_are_refused(operators):
    x, weight = torch.ones(1, 8, 2, 3), torch.zeros(8, 8, 1, 1)

    def update(count):
        return torch.ops.tdnet_emulator.block_sum_update(
            [x] * count, 0, x, weight, None, 0, 1, "none"
        )

    assert (update(33)[1] == 32).all()
    with pytest.raises(RuntimeError, match=r"^partials: expected at most 33, as .*, got 34"):
        update(34)


# --- the tests of every route, here for the emulated one ------------------------------------------


# torch answers these itself: the emulated operators have kernels for dense CPU tensors alone.
OTHER_DEVICES = {
    "test_missing",
    "test_mixed_devices",
    "test_mixed_devices_by_the_first",
    "test_layouts_of_other_kinds",
    "test_nested_values",
    "test_a_block_of_another_device_is_blamed_not_its_weight",
}


def by_route(file):
    tests = samples.tests_by_route(emulator.ROOT / "tests" / "tdnet_ops" / file, ROUTE)
    return {name: test for name, test in tests.items() if name not in OTHER_DEVICES}


globals().update(by_route("test_semantics.py"))
globals().update(by_route("test_checks.py"))


# --- sanitizers -----------------------------------------------------------------------------------

SANITIZED = ["middle-c", "wide-c", "dilated-c", "odd_channels-c", "one_key-c"]
SANITIZED += ["one_key_more-c", "-tiles-c"]  # maps and tiles whose ends do not meet


def run_program(*arguments):
    return emulator.run_python(run_samples.__file__, *arguments)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["address", "thread"])
def test_sanitizers_find_nothing(kind):
    """Seed 1 changes threads most often; copies that land late race most."""
    result = run_program("--kind", kind, "--seeds", "1", "--", *SANITIZED)
    assert "Sanitizer" not in result.stderr, result.stderr[-8000:]
    assert "runtime error" not in result.stderr, result.stderr[-8000:]
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    assert re.search(r"^\d{3,} runs, 0 failed", result.stdout, re.M), result.stdout


# A tensor whose memory has been taken away: every kernel reads past its end.
SHORT = """
import sys, emulator, torch
emulator.load_operators("address")
x = torch.zeros(1, 32, 24, 24)
x.untyped_storage().resize_(64)
calls = {
    "spatial_pool": lambda op: op(x, 2),
    "attention_propagate": lambda op: op(torch.zeros(1, 32, 2, 3), x, x),
    "block_sum_reduce": lambda op: op([x], [torch.zeros(8, 32, 1, 1)], None, 0, 1, "none"),
    "upsample_argmax": lambda op: op(x, (48, 48)),
}
calls[sys.argv[1]](getattr(torch.ops.tdnet_emulator, sys.argv[1]))
print("survived")
"""


@pytest.mark.slow
@pytest.mark.parametrize("operator", ["spatial_pool", "attention_propagate", "block_sum_reduce"])
def test_address_sanitizer_would_find_an_overflow(operator):
    """The test above can fail."""
    emulator.build("operators", "address")
    result = emulator.run_python("-c", SHORT, operator, **emulator.environment("address"))
    assert "survived" not in result.stdout
    assert "AddressSanitizer: heap-buffer-overflow" in result.stderr, result.stderr[-4000:]
    assert "csrc/cuda/" in result.stderr


def barriers(file):
    """The lines of csrc/cuda/kernels/`file` where all threads of a block wait for each other."""
    lines = (emulator.ROOT / "csrc" / "cuda" / "kernels" / file).read_text().splitlines()
    return [number for number, text in enumerate(lines, 1) if re.match(r" *__syncthreads\(", text)]


@pytest.mark.slow
def test_thread_sanitizer_would_find_a_race():
    """A barrier of a kernel left out."""
    drop = f"/attention_tensor_cores.cu:{barriers('attention_tensor_cores.cu')[0]}"
    sample = "attention_propagate-one_key-channels_last"
    result = run_program("--kind", "thread", "--seeds", "1", "--drop", drop, "--", sample)
    assert "ThreadSanitizer: data race" in result.stderr, result.stdout + result.stderr[-4000:]
    assert " tdnet::cuda::" in result.stderr, result.stderr[-4000:]
