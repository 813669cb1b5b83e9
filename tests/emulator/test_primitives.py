"""What the emulated instructions compute, against statements that owe nothing to their code."""

import math

import numpy as np
import pytest
import torch
from examples import to_bfloat16

HALF, BFLOAT16, TF32 = range(3)


# --- numbers --------------------------------------------------------------------------------------


def test_every_half_widens_exactly(examples):
    half, bfloat16 = np.empty(65536, np.float32), np.empty(65536, np.float32)
    examples.widen_half(half, bfloat16)
    bits = np.arange(65536, dtype=np.uint16)
    np.testing.assert_array_equal(half, bits.view(np.float16).astype(np.float32))
    right = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(bfloat16, right)
    assert np.signbit(half[0x8000])
    assert np.signbit(bfloat16[0x8000])


@pytest.mark.parametrize(
    "x", [np.empty(256), np.empty(512, np.float32)[::2]], ids=["dtype", "gaps"]
)
def test_other_arrays_are_refused(examples, x):
    """A copy of them would be read, and its results lost."""
    with pytest.raises(TypeError, match="incompatible function arguments"):
        examples.find_shared(x.reshape(4, 64))


def numbers_to_round():
    """Every half, the ties between neighbours, their neighbours, extremes, and any bits."""
    half = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32)
    upper = (np.arange(65536, dtype=np.uint32) << 16).view(np.float32)
    with np.errstate(invalid="ignore"):
        ties = [(half[:-1] + half[1:]) / 2, (upper.view(np.uint32) + 0x8000).view(np.float32)]
        ties.append((upper.view(np.uint32) + 0x1000).view(np.float32))
    exact = np.concatenate([half, upper, *ties])
    generator = np.random.default_rng(0)
    anything = generator.integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32)
    with np.errstate(invalid="ignore"):
        beside = [np.nextafter(exact, np.float32(to)) for to in (np.inf, -np.inf)]
    return np.concatenate([exact, *beside, anything])


def test_rounding_to_half_is_exact(examples):
    x = numbers_to_round()
    half, bfloat16, tf32 = (np.empty(x.size, kind) for kind in (np.uint16, np.uint16, np.uint32))
    examples.round_to_half(x, half, bfloat16, tf32)
    nan = np.isnan(x)
    for found, dtype in ((half, torch.float16), (bfloat16, torch.bfloat16)):
        right = torch.from_numpy(x).to(dtype).view(torch.int16).numpy().view(np.uint16)
        np.testing.assert_array_equal(found[~nan], right[~nan])
        assert (found[nan] == 0x7FFF).all()


def test_rounding_to_tf32_is_to_nearest_ties_away(examples):
    x = numbers_to_round()
    tf32 = np.empty(x.size, np.uint32)
    unused = np.empty(x.size, np.uint16)
    examples.round_to_half(x, unused, unused, tf32)
    finite = np.isfinite(x)
    values = tf32.view(np.float32)[finite].astype(np.float64)
    assert not (tf32[finite] & 0x1FFF).any()
    # In units of the tenth bit of the mantissa; denormal numbers have those of the smallest normal.
    exponent = np.maximum(np.frexp(x[finite].astype(np.float64))[1] - 1, -126)
    scaled = np.ldexp(np.abs(x[finite].astype(np.float64)), 10 - exponent)
    rounded = np.copysign(np.ldexp(np.floor(scaled + 0.5), exponent - 10), x[finite])
    largest = np.float64(np.finfo(np.float32).max)
    overflow = np.abs(rounded) > largest
    np.testing.assert_array_equal(values[~overflow], rounded[~overflow])
    assert np.isinf(values[overflow]).all()
    assert overflow.any()
    assert np.isnan(tf32.view(np.float32)[np.isnan(x)]).all()


def test_power_of_two(examples):
    power = examples.power_of_two
    for x in (-126.0, -1.0, 0.0, 0.5, 3.25, 127.0):
        assert power(x) == pytest.approx(2.0**x, rel=2e-7)
    assert power(0.0) == 1.0
    assert power(-126.5) == 0.0, "denormal results are flushed"
    assert power(-math.inf) == 0.0
    assert power(math.inf) == power(128.0) == math.inf
    assert math.isnan(power(math.nan))


# --- fragments ------------------------------------------------------------------------------------


def fragments(matrix, thread_strides, value_strides):
    """What each lane holds of `matrix` [rows, depth], by the strides of a layout (thread, value).

    The index is row + rows * depth, as in the traits of the instructions in NVIDIA's CuTe: thread
    (l % 4, l / 4) and value (bit 0, bit 1, ...) step through it by these strides.
    """
    flat = matrix.T.reshape(-1)
    values = [0]
    for stride in value_strides:
        values += [value + stride for value in values]
    first, second = thread_strides
    return np.ascontiguousarray(
        [[flat[lane % 4 * first + lane // 4 * second + v] for v in values] for lane in range(32)]
    )


def stored(x, kind):
    if kind == HALF:
        return x.astype(np.float16).view(np.uint16)
    return to_bfloat16(x) if kind == BFLOAT16 else x.view(np.uint32)


@pytest.mark.parametrize("kind", [HALF, BFLOAT16, TF32])
def test_multiply_add(examples, kind):
    depth = 8 if kind == TF32 else 16
    generator = np.random.default_rng(kind)
    a, b, d = (
        generator.integers(-8, 9, shape).astype(np.float32)
        for shape in ((16, depth), (8, depth), (16, 8))
    )
    d += 0.25
    if kind == TF32:
        a_lanes = fragments(stored(a, kind), (16, 1), (8, 64))
        b_lanes = fragments(stored(b, kind), (8, 1), (32,))
    else:
        a_lanes = fragments(stored(a, kind), (32, 1), (16, 8, 128)).view(np.uint32)
        b_lanes = fragments(stored(b, kind), (16, 1), (8, 64)).view(np.uint32)
    d_lanes = fragments(d, (32, 1), (16, 8))
    assert a_lanes.shape == (32, 4)
    assert b_lanes.shape == (32, 2)
    examples.multiply(a_lanes, b_lanes, d_lanes, kind)
    np.testing.assert_array_equal(d_lanes, fragments(d + a @ b.T, (32, 1), (16, 8)))


def test_tf32_ignores_the_low_bits(examples):
    a, b = np.full((32, 4), 0x3F801FFF, np.uint32), np.full((32, 2), 0x3F800001, np.uint32)
    d = np.zeros((32, 4), np.float32)
    examples.multiply(a, b, d, TF32)
    assert (d == 8).all()


@pytest.mark.parametrize("kind", [HALF, BFLOAT16, TF32])
def test_multiply_add_keeps_nan_and_infinities(examples, kind):
    depth = 8 if kind == TF32 else 16
    a, b = np.zeros((16, depth), np.float32), np.ones((8, depth), np.float32)
    a[3, 5], a[9, 0] = np.nan, np.inf
    strides = ((16, 1), (8, 64)) if kind == TF32 else ((32, 1), (16, 8, 128))
    a_lanes = fragments(stored(a, kind), *strides).view(np.uint32)
    b_strides = ((8, 1), (32,)) if kind == TF32 else ((16, 1), (8, 64))
    b_lanes = fragments(stored(b, kind), *b_strides).view(np.uint32)
    d = np.zeros((32, 4), np.float32)
    examples.multiply(a_lanes, b_lanes, d, kind)
    expected = np.zeros((16, 8), np.float32)
    expected[3], expected[9] = np.nan, np.inf
    np.testing.assert_array_equal(d, fragments(expected, (32, 1), (16, 8)))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("row_stride", [16, 48])
def test_load_matrices(examples, transposed, row_stride):
    numbers = np.arange(256, dtype=np.uint16)
    found = np.zeros((32, 4), np.uint32)
    examples.load_matrices(numbers, found, row_stride, transposed)
    matrices = numbers.reshape(4, 8, 8)
    if transposed:
        matrices = matrices.transpose(0, 2, 1)
    # Lane l of a warp takes pair l of the 32 pairs of neighbours of each matrix.
    pairs = np.ascontiguousarray(matrices).reshape(4, 32, 2)
    np.testing.assert_array_equal(found, pairs[..., 0].T | pairs[..., 1].T.astype(np.uint32) << 16)


@pytest.mark.parametrize(
    ("row_stride", "conflicts"), [(16, 0), (32, 4), (64, 12), (128, 28), (144, 0)]
)
def test_bank_conflicts_are_counted(examples, row_stride, conflicts):
    """A row of 128 bytes spans all banks: rows that far apart are read one after another."""
    numbers, found = np.arange(256, dtype=np.uint16), np.zeros((32, 4), np.uint32)
    with examples.counting() as statistics:
        examples.load_matrices(numbers, found, row_stride, False)
    assert statistics.matrix_loads == 1
    assert statistics.bank_conflicts == conflicts


# --- warps and blocks -----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    ("argument", "width"), [(1, 32), (5, 32), (16, 32), (3, 8), (1, 2), (0, 32)]
)
def test_shuffles_and_votes(examples, argument, width, seed):
    examples.set(seed)
    x = np.random.default_rng(width).permutation(32) + 2**40
    x[7] = argument
    out = np.zeros((8, 32), np.int64)
    examples.shuffle(x, out, argument, width)
    lanes = np.arange(32)
    first = lanes // width * width

    def taken(source):
        inside = (source >= first) & (source < first + width)
        return x[np.where(inside, source, lanes)]

    np.testing.assert_array_equal(out[0], x[first + argument % width])
    np.testing.assert_array_equal(out[1], taken(lanes - argument))
    np.testing.assert_array_equal(out[2], taken(lanes + argument))
    np.testing.assert_array_equal(out[3], taken(lanes ^ argument))
    assert (out[4] == sum(1 << lane for lane in range(32) if x[lane] % 3 == 0)).all()
    assert (out[5] == 3).all()
    floats = x.astype(np.float32)
    assert (out[6] == floats.max()).all()
    sums = floats.reshape(4, 8)
    for distance in (4, 2, 1):
        sums = sums + sums[:, np.arange(8) ^ distance]
    np.testing.assert_array_equal(out[7], sums.reshape(32).astype(np.int64))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("threads", [1, 31, 32, 33, 256])
def test_votes_of_a_block(examples, threads, seed):
    """Round after round: no thread reads the result of another round."""
    examples.set(seed)
    rounds = 20
    votes = (np.random.default_rng(threads).random((rounds, threads)) < 0.7 / threads).astype("i4")
    out = np.full_like(votes, -1)
    examples.vote(votes, out)
    expected = votes.any(1)
    assert expected.any()
    assert not expected.all()
    np.testing.assert_array_equal(out, np.broadcast_to(expected[:, None], out.shape))


def test_atomic_extremes(examples):
    x = np.random.default_rng(1).integers(-1000, 1000, 200).astype(np.int32)
    least, most = np.zeros(1, np.int32), np.zeros(1, np.int32)
    examples.extremes(x, least, most)
    assert (least[0], most[0]) == (x.min(), x.max())
