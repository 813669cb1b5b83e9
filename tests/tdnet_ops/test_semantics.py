"""Extreme numbers as torch treats them: large logits, infinities, NaN and ties."""

import itertools
import subprocess
import sys
import textwrap

import pytest
import samples
import torch
import torch.nn.functional as F

import tdnet_ops

INF, NAN = float("inf"), float("nan")
ROUTES = list(samples.ROUTES)


def propagate(route, affinity, v):
    """softmax(affinity) v on one row of queries: [N, M] x [M, d_v] -> [N, d_v]."""
    call = samples.ROUTES[route]("softmax_propagate")
    keys, channels = v.shape
    out = call(affinity[None], v.T.reshape(1, channels, 1, keys), (affinity.shape[0], 1))
    return out[0, :, :, 0].T


def attend(route, affinity, v):
    """The same by attention_propagate: the queries are the logits, the keys the identity."""
    call = samples.ROUTES[route]("attention_propagate")
    keys, channels = v.shape
    q = affinity.T.reshape(1, keys, affinity.shape[0], 1)
    k = torch.eye(keys, dtype=v.dtype).reshape(1, keys, 1, keys)
    return call(q, k, v.T.reshape(1, channels, 1, keys), scale=1.0)[0, :, :, 0].T


CASES = [(route, function) for route in ROUTES for function in (propagate, attend)]


def logits(queries, keys, scale):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(queries, keys, generator=generator) * scale


@pytest.mark.parametrize(("route", "function"), CASES)
@pytest.mark.parametrize("scale", [1.0, 100.0, 1e4])
@pytest.mark.parametrize("shift", [0.0, 1e4, -1e4])
def test_large_logits_are_exact(route, function, scale, shift):
    affinity = logits(67, 131, scale) + shift
    v = logits(131, 9, 1.0)
    exact = affinity.double().softmax(-1) @ v.double()
    plain = affinity.softmax(-1) @ v
    samples.assert_near(function(route, affinity, v), exact, plain, torch.float32, route, 131)


@pytest.mark.parametrize(("route", "function"), CASES)
def test_opposite_extremes(route, function):
    affinity = torch.tensor([[1e4, -1e4, 1e4], [-1e4, -1e4, -1e4 + 1], [88.0, -88.0, 0.0]])
    v = logits(3, 5, 1.0)
    exact = affinity.double().softmax(-1) @ v.double()
    samples.assert_near(
        function(route, affinity, v), exact, affinity.softmax(-1) @ v, torch.float32, route
    )


@pytest.mark.parametrize(("route", "function"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("keys", [2, 100, 1225])
def test_a_mean_of_large_values_is_finite(route, function, dtype, keys):
    """Their sum is beyond float32: weights must be whole before they meet the values."""
    if function is attend:
        keys = min(keys, 100)  # as many key channels
    affinity, v = torch.zeros(3, keys, dtype=dtype), torch.full((keys, 5), 3e38, dtype=dtype)
    v[:, 1] *= -1
    v[:, 2] *= 0.01
    out = function(route, affinity, v)
    torch.testing.assert_close(out, v[:3] if keys > 2 else v[[0, 0, 0]], rtol=1e-4, atol=0)


@pytest.mark.parametrize(("route", "function"), CASES)
@pytest.mark.parametrize("keys", [2, 100])
@pytest.mark.parametrize("logit", [-80.0, -87.0, -88.0, -95.0, -102.0])
def test_small_weights_count(route, function, keys, logit):
    """As small as float32 can be, subnormal included: at -88, 1e38 gives 0.605."""
    affinity, v = torch.full((2, keys), -1e4), torch.zeros(keys, 3)
    affinity[:, 0], affinity[:, -1] = 0.0, logit
    v[-1] = torch.tensor([1e38, -1e38, INF])
    out = function(route, affinity, v)
    exact = affinity.double().softmax(-1) @ v.double()
    assert exact[0, 2] == INF
    # A subnormal number has few bits.
    rounding = 1e38 * 2.0**-149
    torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=rounding)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("keys", [1, 3, 50])
def test_minus_infinity_weighs_nothing(route, keys):
    affinity, v = logits(5, keys + 2, 1.0), logits(keys + 2, 4, 1.0)
    affinity[:, 0] = affinity[:, -1] = -INF
    v[0], v[-1] = 1e30, -1e30
    torch.testing.assert_close(
        propagate(route, affinity, v), affinity[:, 1:-1].softmax(-1) @ v[1:-1], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("route", ROUTES)
def test_one_number_against_minus_infinities(route):
    affinity = torch.full((3, 7), -INF)
    affinity[0, 0], affinity[1, 3], affinity[2, 6] = -1e4, 0.0, 3e38
    v = logits(7, 4, 1.0)
    torch.testing.assert_close(propagate(route, affinity, v), v[[0, 3, 6]], rtol=0, atol=0)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("dtype", samples.DTYPES)
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("where", [0, 5, 130])
def test_bad_rows_are_nan_and_only_they(route, dtype, bad, where):
    """A NaN or +inf logit, or a row of nothing but -inf, gives NaN, as torch; other rows stay."""
    affinity, v = logits(64, 131, 1.0).to(dtype), logits(131, 9, 1.0).to(dtype)
    for row in (0, 17, 63):
        if bad == -INF:
            affinity[row] = bad
        else:
            affinity[row, where] = bad
    out = propagate(route, affinity, v)
    expected = (affinity.double().softmax(-1) @ v.double()).isnan()
    assert expected.any(1).sum() == 3
    assert torch.equal(out.isnan(), expected)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("argument", ["q", "k", "v", "residual", "weight", "bias"])
@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("out_channels", [3, 200])
def test_nan_propagates_from_every_argument(route, argument, bad, out_channels):
    """phi folded into the values (3) and applied after them (200)."""
    arguments = {
        "q": logits(8 * 63, 1, 1.0).reshape(1, 8, 7, 9),
        "k": logits(8 * 20, 1, 1.0).reshape(1, 8, 4, 5),
        "v": logits(6 * 20, 1, 1.0).reshape(1, 6, 4, 5),
        "residual": logits(out_channels * 63, 1, 1.0).reshape(1, out_channels, 7, 9),
        "weight": logits(out_channels, 6, 1.0),
        "bias": logits(out_channels, 1, 1.0)[:, 0],
    }
    arguments[argument].view(-1)[-1] = bad
    out = samples.ROUTES[route]("attention_propagate")(*arguments.values())
    exact = tdnet_ops.reference.attention_propagate(*(x.double() for x in arguments.values()))
    assert exact.isfinite().sum() < exact.numel()
    assert torch.equal(out.isfinite(), exact.isfinite())
    # With phi folded into the values, an infinite weight meets values of both signs: NaN for +-inf.
    if (argument, bad) != ("weight", INF):
        assert torch.equal(out.isnan(), exact.isnan())


@pytest.mark.parametrize("route", ROUTES)
def test_pool_keeps_nan_and_infinities(route):
    x = torch.zeros(1, 1, 4, 8)
    x[0, 0, 1, 1], x[0, 0, 0, 2], x[0, 0, 3, 5] = NAN, INF, -INF
    x[0, 0, :2, 6:] = -INF
    x[0, 0, 2, 0], x[0, 0, 3, 1] = NAN, INF
    out = samples.ROUTES[route]("spatial_pool")(x, 2)
    right = F.max_pool2d(x, 2)
    torch.testing.assert_close(out, right, rtol=0, atol=0, equal_nan=True)
    assert right.isnan().sum() == 2


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("activation", ["none", "relu"])
def test_block_sum_keeps_nan(route, activation):
    x, weight = logits(6, 35, 1.0).reshape(1, 6, 5, 7), logits(4, 6, 1.0).reshape(4, 6, 1, 1)
    x[0, 0, 2, 3] = NAN
    out = samples.ROUTES[route]("block_sum_reduce")(
        [x, x], [weight, weight], None, 0, 1, activation
    )
    assert out.isnan().nonzero().tolist() == [[0, c, 2, 3] for c in range(4)]
    partial, total = samples.ROUTES[route]("block_sum_update")(
        [out, out], 1, torch.nan_to_num(x), weight, None, 0, 1, activation
    )
    assert not partial.isnan().any()
    assert total.isnan().nonzero().tolist() == [[0, c, 2, 3] for c in range(4)]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("index", [0, 1, 2])
def test_partials_are_added_in_their_order(route, index):
    """Whichever is new: in any other order than the first two first, the 1 would be lost."""
    numbers = [2.0**25, -(2.0**25), 1.0]
    partials = [torch.full((1, 4, 3, 5), number) for number in numbers]
    x, weight = partials[index][:, :1], torch.ones(4, 1, 1, 1)
    call = samples.ROUTES[route]("block_sum_update")
    partial, total = call(partials, index, x, weight, None, 0, 1, "none")
    assert (partial == numbers[index]).all()
    assert (total == 1).all()


# --- upsample_argmax ------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
@pytest.mark.parametrize("size", [(1, 1), (3, 2), (6, 7), (16, 33)])
def test_ties_go_to_the_lowest_class(route, align_corners, dtype, size):
    call = samples.ROUTES[route]("upsample_argmax")
    logits = torch.full((2, 6, 6, 7), -1.0)
    logits[0, 2], logits[0, 4] = 0.5, 0.5
    labels = call(logits, size, align_corners, dtype)
    assert labels.dtype == dtype
    assert (labels[0] == 2).all()
    assert (labels[1] == 0).all()


@pytest.mark.parametrize("classes", [1, 2, 19, 256, 257])
def test_equal_classes_give_zero(classes):
    """All classes share memory, so their interpolated numbers are equal to the last bit."""
    x = torch.randn(2, 1, 5, 6).expand(2, classes, 5, 6)
    assert not samples.routes.public("upsample_argmax")(x, (13, 29), dtype=torch.int64).any()


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("size", [(6, 7), (6, 20), (13, 7), (13, 20), (3, 4)])
def test_bad_logits_as_torch(route, align_corners, bad, size):
    logits = torch.randn(2, 5, 6, 7, generator=torch.Generator().manual_seed(5))
    logits[0, 3, 2, 2] = logits[0, 1, 4, 4] = logits[1, 0, 0, 0] = logits[1, 4, 5, 6] = bad
    upsampled = F.interpolate(logits, size, mode="bilinear", align_corners=align_corners)
    labels = samples.ROUTES[route]("upsample_argmax")(logits, size, align_corners, torch.int64)
    assert torch.equal(labels, upsampled.argmax(1))
    if bad == INF or bad != bad:
        assert upsampled.isnan().any() or upsampled.isinf().any()


@pytest.mark.parametrize("route", ROUTES)
def test_whole_maps_of_bad_logits(route):
    call = samples.ROUTES[route]("upsample_argmax")
    shape = (1, 4, 5, 6)
    assert not call(torch.full(shape, NAN), (7, 9)).any()
    two = torch.zeros(shape)
    two[:, 2:] = NAN
    assert (call(two, (7, 9)) == 2).all()


@pytest.mark.parametrize("route", ROUTES)
def test_the_last_class_of_each_dtype(route):
    call = samples.ROUTES[route]("upsample_argmax")
    for classes, dtype in ((256, torch.uint8), (256, torch.int64), (257, torch.int64)):
        logits = torch.zeros(1, classes, 3, 4)
        logits[:, -1] = 1
        labels = call(logits, (5, 9), False, dtype)
        assert labels.dtype == dtype
        assert (labels == classes - 1).all()
    refused = r"dtype: expected torch\.int64 for logits of 257 classes, got torch\.uint8"
    with pytest.raises((ValueError, RuntimeError), match=refused):
        call(torch.zeros(1, 257, 3, 4), (5, 9))


# --- memory ---------------------------------------------------------------------------------------

MEMORY = r"""
    import re, sys, torch, tdnet_ops
    from pathlib import Path
    backend, backward = sys.argv[1], sys.argv[2] == "backward"
    torch.set_num_threads(2)
    def run(side, keys):
        q = torch.randn(1, 8, side, side, requires_grad=backward)
        k = torch.randn(1, 8, 1, keys, requires_grad=backward)
        v = torch.randn(1, 16, 1, keys, requires_grad=backward)
        out = tdnet_ops.attention_propagate(q, k, v, weight=torch.randn(16, 16), backend=backend)
        if backward:
            out.sum().backward()
    def peak():
        # Of this program alone: getrusage also counts the one that started it.
        return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
    run(16, 16)
    before = peak()
    run(220, 3000)
    print(peak() - before)
"""


@pytest.fixture
def growth_in_megabytes(tmp_path):
    """Return a function: peak memory that the call added. The affinity alone would be 554."""

    def measure(backend, direction):
        command = [sys.executable, "-c", textwrap.dedent(MEMORY), backend, direction]
        # Python imports from the working directory first: not the one with the sources.
        result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
        return float(result.stdout)

    return measure


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_the_affinity_is_never_stored(growth_in_megabytes, direction):
    assert growth_in_megabytes("cpu", direction) < 256


def test_a_stored_affinity_would_be_seen(growth_in_megabytes):
    """The test above can fail: the definition stores it."""
    assert growth_in_megabytes("reference", "forward") > 550


def peak_of_tensors(call):
    """The most bytes of tensors that a call held at once beside those before it."""
    with torch.profiler.profile(profile_memory=True) as recorded:
        call()
    events = recorded.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return max(itertools.accumulate(nbytes for _, nbytes in changes))


@pytest.mark.parametrize("side", [32, 64])
def test_small_maps_take_less_memory_than_the_plain_form_in_training(side):
    maps = [torch.randn(1, channels, side, side, requires_grad=True) for channels in (64, 64, 128)]
    grad = torch.randn(1, 128, side, side)
    ours, plain = (
        peak_of_tensors(lambda f=f: torch.autograd.grad(f(*maps), maps, grad))
        for f in (tdnet_ops.attention_propagate, tdnet_ops.reference.attention_propagate)
    )
    assert ours < 0.8 * plain
