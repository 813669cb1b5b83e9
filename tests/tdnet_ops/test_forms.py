"""attention_propagate on tokens, frames and a batch of one, with heads; merged parts."""

import pytest
import torch
import torch.nn.functional as F

import tdnet_ops
from tdnet_ops import reference

HEADS, KEYS, CHANNELS = 3, 20, 12


def maps_of(x, height):
    return x.transpose(1, 2).unflatten(2, (height, -1))


@pytest.fixture
def tokens():
    shapes = ((2, 30, CHANNELS), (2, KEYS, CHANNELS), (2, KEYS, 9), (2, 30, 9))
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def test_tokens_are_maps_of_one_row(tokens):
    q, k, v, residual = tokens
    out, rows = tdnet_ops.attention_propagate(
        q, k, v, residual, heads=HEADS, return_log_sum_exp=True
    )
    maps = maps_of(q, 5), maps_of(k, 4), maps_of(v, 4), maps_of(residual, 5)
    right, right_rows = reference.attention_propagate_forward(*maps, heads=HEADS)
    torch.testing.assert_close(maps_of(out, 5), right)
    torch.testing.assert_close(rows.view(2, HEADS, 5, 6), right_rows)
    grad, grad_rows = torch.randn_like(out), torch.randn_like(rows)
    found = torch.autograd.grad([out, rows], tokens, [grad, grad_rows])
    expected = torch.autograd.grad(
        [right, right_rows], tokens, [maps_of(grad, 5), grad_rows.view_as(right_rows)]
    )
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(got, wanted)


def test_tokens_are_scaled_dot_product_attention():
    q, k, v = torch.randn(2, 30, 24), torch.randn(2, KEYS, 24), torch.randn(2, KEYS, 24)
    split = [x.unflatten(2, (HEADS, -1)).transpose(1, 2) for x in (q, k, v)]
    right = F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)
    out = tdnet_ops.attention_propagate(q, k, v, heads=HEADS)
    torch.testing.assert_close(out, right, rtol=1e-5, atol=1e-5)
    assert out.is_contiguous()


def test_tokens_are_not_copied(monkeypatch):
    """What the operator gets is the memory that was given."""
    seen = []
    call = torch.ops.tdnet.attention_propagate

    class Space:
        @staticmethod
        def attention_propagate(*arguments, **keywords):
            seen.extend(x.data_ptr() for x in arguments[:4])
            return call(*arguments, **keywords)

    monkeypatch.setattr(tdnet_ops.backends, "operators", lambda name: Space)
    q, k, v = torch.randn(1, 6, 4), torch.randn(3, 4, 2, 5, 7), torch.randn(3, 4, 2, 5, 7)
    residual = torch.randn(1, 6, 4)
    tdnet_ops.attention_propagate(q, k, v, residual)
    assert seen == [x.data_ptr() for x in (q, k, v, residual)]


def test_frames_are_more_keys():
    q = torch.randn(2, 4, 5, 6)
    k, v = torch.randn(2, 4, 3, 2, 5), torch.randn(2, 7, 3, 2, 5)
    right = reference.attention_propagate(q, k.flatten(2, 3), v.flatten(2, 3))
    torch.testing.assert_close(tdnet_ops.attention_propagate(q, k, v), right)


@pytest.mark.parametrize("whose", ["queries and residual", "keys and values"])
def test_a_batch_of_one_goes_with_any(whose):
    maps = [torch.randn(3, 4, *size) for size in ((5, 6), (2, 3), (2, 3), (5, 6))]
    for place in (0, 3) if whose == "queries and residual" else (1, 2):
        maps[place] = maps[place][:1]
    leaves = [x.double().requires_grad_() for x in maps]
    right = reference.attention_propagate(*(x.expand(3, -1, -1, -1) for x in leaves))
    out = tdnet_ops.attention_propagate(*leaves)
    torch.testing.assert_close(out, right)
    grad = torch.randn_like(out)
    found = torch.autograd.grad(out, leaves, grad)
    for got, wanted in zip(found, torch.autograd.grad(right, leaves, grad), strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("heads", [1, HEADS])
@pytest.mark.parametrize("with_phi", [False, True])
@pytest.mark.parametrize("wanted", ["result", "log-sum-exp", "both"])
def test_gradients_with_heads(heads, with_phi, wanted):
    shapes = [(2, CHANNELS, 4, 5), (2, CHANNELS, 3, 2), (2, 9, 3, 2)]
    shapes += [(2, 7, 4, 5), (7, 9), (7,)] if with_phi else [(2, 9, 4, 5)]
    leaves = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]

    def call(*arguments):
        results = tdnet_ops.attention_propagate(*arguments, heads=heads, return_log_sum_exp=True)
        return {"result": results[0], "log-sum-exp": results[1], "both": results}[wanted]

    assert torch.autograd.gradcheck(call, leaves, fast_mode=True)


@pytest.mark.parametrize("form", ["maps", "tokens"])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_parts_of_the_keys_are_merged(form, backend):
    q, k, v = torch.randn(2, 6, 4, 5), torch.randn(2, 6, 3, 8), torch.randn(2, 9, 3, 8)
    keywords = {"heads": HEADS, "return_log_sum_exp": True, "backend": backend}
    right, right_rows = tdnet_ops.attention_propagate(q, k, v, **keywords)
    pieces = [(q, k[..., some], v[..., some]) for some in (slice(0, 1), slice(1, 6), slice(6, 8))]
    if form == "tokens":
        pieces = [[x.flatten(2).transpose(1, 2) for x in piece] for piece in pieces]
        right, right_rows = right.flatten(2).transpose(1, 2), right_rows.flatten(2)
    parts = [tdnet_ops.attention_propagate(*piece, **keywords) for piece in pieces]
    merged, rows = tdnet_ops.merge(*zip(*parts, strict=True))
    torch.testing.assert_close(merged, right, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(rows, right_rows, rtol=1e-5, atol=1e-5)


def test_merged_parts_that_see_nothing():
    """A part without a key adds nothing; without any, and with NaN, it is NaN as the softmax is."""
    inf, nan = float("inf"), float("nan")
    results = [torch.tensor([nan, nan, 1.0]), torch.tensor([2.0, nan, 3.0])]
    rows = [torch.tensor([-inf, -inf, 0.0]), torch.tensor([1.0, -inf, nan])]
    shape = (1, 1, 1, 3)
    merged, total = tdnet_ops.merge([x.view(shape) for x in results], [x.view(shape) for x in rows])
    expected = torch.tensor([2.0, nan, nan]).view(shape)
    torch.testing.assert_close(merged, expected, equal_nan=True)
    expected = torch.tensor([1.0, -inf, nan]).view(shape)
    torch.testing.assert_close(total, expected, equal_nan=True)


def test_parts_and_rows_must_be_as_many():
    with pytest.raises(ValueError, match=r"^log_sum_exps: expected one of each"):
        tdnet_ops.merge([torch.ones(1, 1, 1, 1)], [])


BAD = {
    "heads of 0": ({"heads": 0}, "heads: expected at least 1, got 0"),
    "heads of q": ({"heads": 4}, r"q: expected channels for 4 heads, got shape \[1, 6, 1, 5\]"),
    "heads of v": ({"heads": 2}, r"v: expected channels for 2 heads, got shape \[1, 3, 1, 7\]"),
    "heads that are no number": ({"heads": True}, "heads: expected an integer, got True"),
    "five dimensions": ({"q": torch.ones(1, 6, 2, 5, 1)}, "q: expected 4 dimensions, got shape"),
    "one map, one token": ({"v": torch.ones(1, 3, 7, 1)}, "v: expected size 1 .height of k."),
    "batches": ({"k": torch.ones(2, 7, 6), "v": torch.ones(3, 7, 3)}, "k: expected size 3 .batch"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_calls(name):
    arguments = {"q": torch.ones(1, 5, 6), "k": torch.ones(1, 7, 6), "v": torch.ones(1, 7, 3)}
    changes, text = BAD[name]
    with pytest.raises((TypeError, ValueError), match=f"^{text}"):
        tdnet_ops.attention_propagate(**{**arguments, **changes})
