"""attention_propagate_forward: the result of attention_propagate, and the log-sum-exp of each row.

Key channels 64 in half precision take the tensor core kernel, others the general one. One
multiprocessor leaves the keys whole, 64 split them wherever there are enough.
"""

import math

import pytest
import samples
import torch

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SCALES = [None, 0.3, 1.5, -0.7, 0.0]
KEYS = 500


@pytest.fixture(autouse=True)
def settings(operators):
    torch.use_deterministic_algorithms(True)  # results start as NaN
    yield
    operators.set()
    torch.use_deterministic_algorithms(False)


def normal(*size, dtype, seed):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def example(dtype, key_channels, *, batch=2, queries=70, keys=KEYS, channels=12):
    q = normal(batch, key_channels, 1, queries, dtype=dtype, seed=1)
    k = normal(batch, key_channels, 1, keys, dtype=dtype, seed=2)
    v = normal(batch, channels, 1, keys, dtype=dtype, seed=3)
    return q, k, v


def forward(q, k, v, scale, residual=None, weight=None, bias=None, heads=1, **options):
    """Both results; the first is that of attention_propagate, to the last bit."""
    ops = torch.ops.tdnet_emulator
    arguments = (q, k, v, residual, weight, bias, scale, heads)
    result, log_sum_exp = ops.attention_propagate_forward(*arguments, **options)
    alone = ops.attention_propagate(*arguments, **options)
    torch.testing.assert_close(result, alone, rtol=0, atol=0, equal_nan=True)
    assert result.stride() == alone.stride()
    assert log_sum_exp.dtype == torch.float32
    assert log_sum_exp.is_contiguous()
    return result, log_sum_exp


def expected_rows(q, k, scale, heads=1):
    """torch.logsumexp in float64; a scale of 0 and an infinity are NaN, as in the product."""
    queries, keys = (x.double().unflatten(1, (heads, -1)).flatten(3) for x in (q, k))
    factor = 1 / math.sqrt(queries.shape[2]) if scale is None else scale
    logits = torch.einsum("bhcn,bhcm->bhnm", queries, keys) * factor
    return torch.logsumexp(logits, dim=3).unflatten(2, q.shape[2:])


def check(q, k, v, scale, tolerance=2e-5, heads=1, **options):
    _, log_sum_exp = forward(q, k, v, scale, heads=heads, **options)
    torch.testing.assert_close(
        log_sum_exp.double(),
        expected_rows(q, k, scale, heads),
        rtol=tolerance,
        atol=tolerance,
        equal_nan=True,
    )
    return log_sum_exp


@pytest.mark.parametrize("multiprocessors", [1, 64])
@pytest.mark.parametrize("key_channels", [5, 64])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows(operators, dtype, scale, key_channels, multiprocessors):
    operators.set(1, "random", multiprocessors=multiprocessors)
    check(*example(dtype, key_channels), scale)


@pytest.mark.parametrize("key_channels", [5, 64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_keys_are_split(operators, dtype, key_channels):
    """What the tests here rely on."""
    arguments = example(dtype, key_channels)
    launches = {}
    for multiprocessors in (1, 64):
        operators.set(multiprocessors=multiprocessors)
        with operators.counting() as counts:
            torch.ops.tdnet_emulator.attention_propagate_forward(*arguments)
        launches[multiprocessors] = counts.launches
    assert launches[64] == launches[1] + 1


@pytest.mark.parametrize("channels", [12, 300])
@pytest.mark.parametrize("multiprocessors", [1, 64])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_slices_of_channels_and_layouts(operators, dtype, layout, multiprocessors, channels):
    operators.set(multiprocessors=multiprocessors)
    tensors = example(dtype, 64, batch=3, queries=35, channels=channels)
    check(*(samples.place(x, layout) for x in tensors), None)


@pytest.mark.parametrize("multiprocessors", [1, 64])
@pytest.mark.parametrize("out_channels", [4, 40])
@pytest.mark.parametrize("dtype", DTYPES)
def test_projection_and_residual_leave_it(operators, dtype, out_channels, multiprocessors):
    """Few output channels fold into the values, many are projected after."""
    operators.set(multiprocessors=multiprocessors)
    q, k, v = example(dtype, 64)
    weight = normal(out_channels, v.shape[1], dtype=dtype, seed=4)
    bias = normal(out_channels, dtype=dtype, seed=5)
    residual = normal(2, out_channels, 1, q.shape[3], dtype=dtype, seed=6)
    plain = check(q, k, v, None)
    _, projected = forward(q, k, v, None, residual, weight, bias)
    assert torch.equal(plain, projected)


@pytest.mark.parametrize("multiprocessors", [1, 64])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("key_channels", [5, 64])  # of a head
@pytest.mark.parametrize("dtype", DTYPES)
def test_heads(operators, dtype, key_channels, layout, multiprocessors):
    """Of a head's own channels; phi, which mixes heads, leaves it."""
    operators.set(multiprocessors=multiprocessors)
    heads = 3
    tensors = example(dtype, heads * key_channels, channels=24)
    q, k, v = (samples.place(x, layout) for x in tensors)
    plain = check(q, k, v, None, heads=heads)
    weight = normal(4, v.shape[1], dtype=dtype, seed=4)
    _, projected = forward(q, k, v, None, weight=weight, heads=heads)
    assert torch.equal(plain, projected)


@pytest.mark.parametrize("multiprocessors", [1, 64])
@pytest.mark.parametrize("scale", [1.0, -1.0])
@pytest.mark.parametrize("key_channels", [5, 64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_maxima_that_grow(operators, dtype, key_channels, scale, multiprocessors):
    """Logits from -90 to 90 in ever higher tiles, and far below 0 alone."""
    operators.set(multiprocessors=multiprocessors)
    q, k, v = example(dtype, key_channels)
    q[:, :1], k[:, 0, 0] = 1.0, torch.linspace(-90, 90, KEYS) * scale
    check(q, k, v, scale)
    k[:, 0] -= 200 * scale
    check(q, k, v, scale)


@pytest.mark.parametrize("multiprocessors", [1, 64])
@pytest.mark.parametrize("scale", [0.5, -0.5])
@pytest.mark.parametrize("key_channels", [5, 64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_infinity_and_nan(operators, dtype, key_channels, scale, multiprocessors):
    operators.set(multiprocessors=multiprocessors)
    q, k, v = example(dtype, key_channels)
    k[:, 0] = 1.0
    q[0, 0, 0, 3] = -torch.inf * scale  # a row of -inf
    q[1, 0, 0, 69] = torch.nan  # a row of NaN
    found = check(q, k, v, scale)
    assert found[0, 0, 0, 3] == -torch.inf
    assert found[1, 0, 0, 69].isnan()
    assert found.isfinite().sum() == found.numel() - 2


@pytest.mark.parametrize("multiprocessors", [1, 64])
@pytest.mark.parametrize("key", [0, 200, 499])
@pytest.mark.parametrize("scale", [0.5, -0.5])
@pytest.mark.parametrize("key_channels", [5, 64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_key_of_plus_infinity(operators, dtype, key_channels, scale, key, multiprocessors):
    """+inf or NaN, where the softmax is NaN."""
    operators.set(multiprocessors=multiprocessors)
    q, k, v = example(dtype, key_channels)
    q[:, 0] = 1.0
    k[0, 0, 0, key] = torch.inf * scale
    result, log_sum_exp = forward(q, k, v, scale)
    assert result[0].isnan().all()
    assert (log_sum_exp[0].isposinf() | log_sum_exp[0].isnan()).all()
    torch.testing.assert_close(
        log_sum_exp[1].double(), expected_rows(q, k, scale)[1], rtol=2e-5, atol=2e-5
    )


@pytest.mark.parametrize("multiprocessors", [1, 64])
@pytest.mark.parametrize("of", [slice(0, 200), slice(128, 256), slice(499, 500)])
@pytest.mark.parametrize("key_channels", [5, 64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_keys_of_infinity_and_nan(operators, dtype, key_channels, of, multiprocessors):
    """Whole parts and tiles of them, and single keys."""
    operators.set(multiprocessors=multiprocessors)
    q, k, v = example(dtype, key_channels)
    q[:, 0] = 1.0
    k[:, 0, 0, of] = -torch.inf
    assert check(q, k, v, 0.5).isfinite().all()
    k[:, 0, 0, of] = torch.nan
    assert check(q, k, v, 0.5).isnan().all()


@pytest.mark.parametrize("key_channels", [5, 64])
def test_tf32(operators, key_channels):
    q, k, v = example(torch.float32, key_channels)
    check(q, k, v, 0.1, tolerance=5e-3, allow_tf32=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_queries(operators, dtype):
    q, k, v = example(dtype, 64)
    result, log_sum_exp = forward(q[..., :0], k, v, None)
    assert result.shape == (2, 12, 1, 0)
    assert log_sum_exp.shape == (2, 1, 1, 0)
