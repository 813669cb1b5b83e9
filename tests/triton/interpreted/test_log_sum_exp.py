"""attention_propagate_forward: the result is attention_propagate's, and the rows' log-sum-exp."""

import pytest
import samples
import torch

import tdnet_ops

forward = torch.ops.tdnet_triton.attention_propagate_forward
backward = torch.ops.tdnet_triton.attention_propagate_backward
INF, NAN = float("inf"), float("nan")


def logits_of(q, k, scale=None):
    return tdnet_ops.reference.pooled_affinity(q.double(), k.double(), scale=scale)


FEW = samples.select(
    ["middle", "ones", "no_batch", "wide", "deep", "heads"],
    ["contiguous", "channels_last", "every_other"],
    [torch.float32, torch.float16],
    ["attention_propagate"],
)


@pytest.mark.parametrize("sample", FEW, ids=str)
def test_log_sum_exp_is_right(sample):
    arguments = sample.arguments()
    out, log_sum_exp = forward(*arguments)
    assert torch.equal(out, torch.ops.tdnet_triton.attention_propagate(*arguments))
    assert log_sum_exp.dtype == torch.float32
    q, k, *_, scale, heads = arguments
    split = [x.unflatten(1, (heads, -1)).flatten(0, 1) for x in (q, k)]
    exact = logits_of(*split, scale).logsumexp(-1).view(log_sum_exp.shape)
    torch.testing.assert_close(log_sum_exp.double(), exact, rtol=1e-5, atol=1e-5)


def test_several_slices_of_channels_and_phi_write_it_once():
    """phi after the attention, and folded: the rows are those of the logits, whatever follows."""
    q, k, v = torch.randn(2, 3, 5, 7), torch.randn(2, 3, 2, 3), torch.randn(2, 300, 2, 3)
    exact = logits_of(q, k).logsumexp(-1).float().view(2, 1, 5, 7)
    for weight in (None, torch.randn(2, 300), torch.randn(290, 300)):
        torch.testing.assert_close(forward(q, k, v, None, weight)[1], exact)


# Logits of a row, by q = 1 and 2 and the keys below.
ROWS = {
    "-inf": ([-INF, -INF], -INF),
    "one of -inf": ([-INF, 1.0], 1.0),
    "NaN": ([0.0, NAN], NAN),
    "inf": ([0.0, INF], INF),
    "large": ([3e4, -3e4], 3e4),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_at_the_ends_of_the_range(name):
    """A softmax of NaN has gradients of NaN; the others' are torch's. +inf may be NaN."""
    keys, expected = ROWS[name]
    q, v, grad = torch.ones(1, 1, 1, 1), torch.randn(1, 2, 1, 2), torch.randn(1, 2, 1, 1)
    k = torch.tensor(keys).reshape(1, 1, 1, 2)
    _, log_sum_exp = forward(q, k, v)
    if expected == INF:
        assert log_sum_exp.isposinf() or log_sum_exp.isnan()
    else:
        exact = torch.tensor([[[[expected]]]])
        torch.testing.assert_close(log_sum_exp, exact, rtol=0, atol=0, equal_nan=True)
    found = backward(grad, None, q, k, v, None, log_sum_exp, None, 1)[:3]
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    tdnet_ops.reference.attention_propagate(*leaves).backward(grad)
    for got, leaf in zip(found, leaves, strict=True):
        torch.testing.assert_close(got, leaf.grad, equal_nan=True)


def test_the_backward_pass_takes_its_rows_from_the_forward():
    """Weights of half: a log-sum-exp that is larger by log 2."""
    q, k, v, grad = (torch.randn(1, 4, 3, 3) for _ in range(4))
    _, log_sum_exp = forward(q, k, v)
    usual = backward(grad, None, q, k, v, None, log_sum_exp, None, 1)
    more = log_sum_exp + torch.tensor(2.0).log()
    halved = backward(grad, None, q, k, v, None, more, None, 1)
    torch.testing.assert_close(halved[2], usual[2] / 2)


def test_an_infinite_key_spoils_no_gradient_beyond_its_queries():
    """One query fills a tile with 15 that do not exist: theirs are no NaN for it."""
    q, k, v = torch.ones(1, 1, 1, 1), torch.tensor([[[[-INF, 1.0]]]]), torch.randn(1, 2, 1, 2)
    grad, log_sum_exp = torch.randn(1, 2, 1, 1), forward(q, k, v)[1]
    grads = backward(grad, None, q, k, v, None, log_sum_exp, None, 1)
    assert grads[1].isfinite().all()
    assert grads[2].isfinite().all()
