"""Softmax sums at the ends of float32's range: nothing overflows or vanishes that torch keeps."""

import math

import pytest
import torch

import tdnet_ops

INF = float("inf")
FLOAT_MAX = torch.finfo(torch.float32).max


def propagate(affinity, v):
    """softmax(affinity) v on one row of queries: [N, M] x [M, d_v] -> [N, d_v]."""
    keys, channels = v.shape
    values = v.T.reshape(1, channels, 1, keys)
    size = (affinity.shape[0], 1)
    return torch.ops.tdnet_triton.softmax_propagate(affinity[None], values, size)[0, :, :, 0].T


def attend(affinity, v):
    """The same by attention_propagate: the queries are the logits, the keys the identity."""
    keys, channels = v.shape
    q = affinity.T.reshape(1, keys, affinity.shape[0], 1)
    k = torch.eye(keys, dtype=v.dtype).reshape(1, keys, 1, keys)
    values = v.T.reshape(1, channels, 1, keys)
    return torch.ops.tdnet_triton.attention_propagate(q, k, values, scale=1.0)[0, :, :, 0].T


BOTH = pytest.mark.parametrize("function", [propagate, attend])
WIDE = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


@BOTH
@WIDE
@pytest.mark.parametrize("keys", [2, 3, 100, 128, 129, 700])
@pytest.mark.parametrize("value", [4e36, -3e38])
def test_sums_of_large_values_do_not_overflow(function, dtype, keys, value):
    v = torch.full((keys, 3), value, dtype=dtype)
    out = function(torch.zeros(5, keys, dtype=dtype), v)
    torch.testing.assert_close(out, v[:1].expand(5, 3), rtol=torch.finfo(dtype).eps * 16, atol=0)


@BOTH
@WIDE
def test_sums_do_not_overflow_while_the_maximum_grows(function, dtype):
    """Every tile of keys weighs more than the ones before."""
    generator = torch.Generator().manual_seed(1)
    affinity = torch.linspace(0, 20, 300).repeat(4, 1).to(dtype)
    v = (torch.rand(300, 3, generator=generator) * 3e38).to(dtype)
    exact = affinity.double().softmax(-1) @ v.double()
    out = function(affinity, v)
    torch.testing.assert_close(out.double(), exact, rtol=4 * torch.finfo(dtype).eps, atol=0)


@BOTH
def test_float16_reaches_its_largest_number(function):
    v = torch.full((700, 3), 65504.0, dtype=torch.float16)
    assert torch.equal(function(torch.zeros(5, 700, dtype=torch.float16), v), v[:5])


@BOTH
@pytest.mark.parametrize("keys", [2, 40, 300])
@pytest.mark.parametrize("first", [True, False])
def test_small_weights_count(function, keys, first):
    """exp(-88) is below the least normal number; in the first tile of keys, or in the last."""
    affinity, v = torch.full((1, keys), -INF), torch.zeros(keys, 1)
    small, large = (0, keys - 1) if first else (keys - 1, 0)
    affinity[0, small], affinity[0, large] = -88.0, 0.0
    v[small] = 1e38
    if function is attend:
        affinity = affinity.clamp(min=-1e4)  # A query of -inf times a key of 0 is NaN.
    exact = 1e38 * math.exp(-88)
    assert exact == pytest.approx(0.605, abs=1e-3)
    assert function(affinity, v).item() == pytest.approx(exact, rel=1e-5)
    v[small] = INF
    assert function(affinity, v).item() == INF


@pytest.mark.parametrize("logit", [-87.0, -95.0, -100.0, -103.0, -104.5, -INF])
def test_weights_vanish_where_torchs_do(logit):
    affinity, v = torch.tensor([[0.0, logit]]), torch.tensor([[0.0], [FLOAT_MAX]])
    expected = affinity.softmax(-1) @ v
    torch.testing.assert_close(propagate(affinity, v), expected, rtol=1e-6, atol=0)


def test_gradients_of_large_values_are_finite():
    """delta, a mean of weights times their gradients, is at most the largest of these."""
    keys = 200
    q, k = torch.zeros(1, 2, 3, 1), torch.zeros(1, 2, 1, keys)
    v, grad = torch.full((1, 1, 1, keys), 4e36), torch.ones(1, 1, 3, 1)
    v[..., 0] = 0
    k[:, :, :, 0] = 1.0
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    torch.ops.tdnet_triton.attention_propagate(*leaves).backward(grad)
    found = [x.grad for x in leaves]
    wide = [x.double().requires_grad_() for x in (q, k, v)]
    tdnet_ops.reference.attention_propagate(*wide).backward(grad.double())
    exact = [x.grad for x in wide]
    assert exact[0].abs().min() > 0
    for got, right in zip(found, exact, strict=True):
        torch.testing.assert_close(got.double(), right, rtol=1e-4, atol=0)
