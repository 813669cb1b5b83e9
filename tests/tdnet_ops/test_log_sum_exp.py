"""attention_propagate_forward: the result of attention_propagate, and the log-sum-exp beside it."""

import math

import pytest
import samples
import torch

from tdnet_ops import reference

NAME_SPACES = ("tdnet", "tdnet_reference")
INFINITY, NAN = float("inf"), float("nan")


def forward(name_space, *arguments):
    return getattr(torch.ops, name_space).attention_propagate_forward(*arguments)


def by_head(x, heads):
    return x.unflatten(1, (heads, -1)).flatten(0, 1).double()


def assert_log_sum_exp(actual, q, k, scale, rtol, heads=1):
    assert actual.shape == (q.shape[0], heads, *q.shape[2:])
    assert actual.dtype == torch.promote_types(q.dtype, torch.float32)
    assert actual.is_contiguous()
    logits = reference.pooled_affinity(by_head(q, heads), by_head(k, heads), scale=scale)
    # The logits have an error of their own.
    largest = logits.abs().nan_to_num(0, 0, 0).max() if logits.numel() else 0
    right = logits.logsumexp(-1).view(actual.shape)
    torch.testing.assert_close(
        actual.double(), right, rtol=0, atol=rtol * (1 + float(largest)), equal_nan=True
    )


@pytest.mark.parametrize("name_space", NAME_SPACES)
@pytest.mark.parametrize(
    "sample", [s for s in samples.SAMPLES if s.operator == "attention_propagate"], ids=str
)
def test_samples(name_space, sample):
    """The same numbers as attention_propagate, in the same layout, and torch.logsumexp."""
    arguments = sample.arguments()
    out, log_sum_exp = forward(name_space, *arguments)
    alone = getattr(torch.ops, name_space).attention_propagate(*arguments)
    assert out.stride() == alone.stride()
    torch.testing.assert_close(out, alone, rtol=0, atol=0, equal_nan=True)
    q, k, *_, scale, heads = arguments
    rtol = 1e-12 if q.dtype == torch.float64 else 2e-6
    assert_log_sum_exp(log_sum_exp, q, k, scale, rtol, heads)


@pytest.mark.parametrize("name_space", NAME_SPACES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("queries", [1, 5, 47, 48, 49, 150])
def test_rows_of_infinities_and_nan(name_space, dtype, queries):
    """One channel, q of ones: the keys are the logits. Every query has keys of its own by batch."""
    rows = [
        [-INFINITY] * 5,
        [-INFINITY, 1, -INFINITY, 2, -INFINITY],
        [-INFINITY, -INFINITY, NAN, -INFINITY, -INFINITY],
        [NAN, 1, 2, 3, 4],
        [1, 2, 3, 4, NAN],
        [INFINITY, 1, -INFINITY, 2, 3],
        [INFINITY, 1, NAN, 2, 3],
        [88, 88, 88, 88, 88],
        [-1e30, -1e30, -1e30, -1e30, -1e30],
        [3e38, 1, 2, 3, 4],
        [0, -103, -104, -105, -300],
    ]
    k = torch.tensor(rows, dtype=dtype)[:, None, None, :]
    q = torch.ones(len(rows), 1, 1, queries, dtype=dtype)
    log_sum_exp = forward(name_space, q, k, k, None, None, None, 1.0)[1]
    right = k[:, :, 0].logsumexp(-1)[:, :, None, None].expand(-1, 1, 1, queries)
    infinite = right == INFINITY
    assert infinite.any()
    # Of these the softmax is NaN: a backend may give +inf or NaN.
    assert (log_sum_exp.isposinf() | log_sum_exp.isnan())[infinite].all()
    torch.testing.assert_close(
        log_sum_exp[~infinite], right[~infinite], rtol=1e-6, atol=1e-6, equal_nan=True
    )


@pytest.mark.parametrize("name_space", NAME_SPACES)
@pytest.mark.parametrize("dtype", samples.DTYPES)
@pytest.mark.parametrize("scale", [None, -3.0, 0.0, 200.0])
@pytest.mark.parametrize("out_channels", [None, 1, 64])  # phi is folded for 1 and not for 64
def test_scales_and_projections(name_space, dtype, scale, out_channels):
    q, k = torch.randn(2, 6, 5, 7, dtype=dtype), torch.randn(2, 6, 9, 11, dtype=dtype)
    v = torch.randn(2, 8, 9, 11, dtype=dtype)
    weight = None if out_channels is None else torch.randn(out_channels, 8, dtype=dtype)
    log_sum_exp = forward(name_space, q, k, v, None, weight, None, scale)[1]
    assert_log_sum_exp(log_sum_exp, q, k, scale, 1e-12 if dtype == torch.float64 else 1e-6)


@pytest.mark.parametrize("name_space", NAME_SPACES)
@pytest.mark.parametrize("shape", [(2, 3, 0, 4), (2, 3, 4, 0), (0, 3, 4, 4)])
def test_no_queries(name_space, shape):
    k = torch.randn(shape[0], 3, 2, 2)
    out, log_sum_exp = forward(name_space, torch.randn(shape), k, k)
    assert out.shape == shape
    assert log_sum_exp.shape == (shape[0], 1, *shape[2:])


@pytest.mark.parametrize("name_space", NAME_SPACES)
def test_one_key(name_space):
    """The log-sum-exp of one logit is the logit."""
    q, k = torch.randn(1, 4, 3, 3), torch.randn(1, 4, 1, 1)
    log_sum_exp = forward(name_space, q, k, k)[1]
    right = (q * k).sum(1, keepdim=True) / math.sqrt(4)
    torch.testing.assert_close(log_sum_exp, right, rtol=1e-6, atol=1e-6)


def test_bad_arguments_are_named_as_of_attention_propagate():
    q, k = torch.randn(1, 4, 3, 3), torch.randn(1, 5, 2, 2)
    for name_space in NAME_SPACES:
        with pytest.raises((RuntimeError, ValueError), match=r"^k: expected size 4 "):
            forward(name_space, q, k, k)
