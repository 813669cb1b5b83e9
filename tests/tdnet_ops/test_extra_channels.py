"""Biases, distances and relative positions by extra channels, against their logits written out."""

import math

import pytest
import torch
import torch.nn.functional as F

import tdnet_ops

HEADS, D, D_V = 2, 6, 5
INF = float("inf")
FORMS = ["maps", "channels_last", "frames", "tokens"]


def split(x, form):
    """What a form is of, as [B, heads, N, C]."""
    if form == "tokens":
        return x.unflatten(2, (HEADS, -1)).transpose(1, 2)
    return x.unflatten(1, (HEADS, -1)).flatten(3).transpose(2, 3)


def inputs(form, dtype=torch.float64):
    """Queries 4 x 5, keys 2 x 6 or 3 frames of them."""
    channels, value_channels = HEADS * D, HEADS * D_V
    if form == "tokens":
        shapes = (2, 20, channels), (2, 12, channels), (2, 12, value_channels)
    else:
        key_size = (3, 2, 6) if form == "frames" else (2, 6)
        shapes = [(2, channels, 4, 5), (2, channels, *key_size), (2, value_channels, *key_size)]
    made = [torch.randn(shape, dtype=dtype) for shape in shapes]
    if form == "channels_last":
        made = [x.contiguous(memory_format=torch.channels_last) for x in made]
    return [x.requires_grad_() for x in made]


def attend(logits, v, q, form):
    """softmax(logits) v of [B, heads, N, M], in the form of attention_propagate's result."""
    out = logits.softmax(-1) @ split(v, form)
    if form == "tokens":
        return out.transpose(1, 2).flatten(2)
    return out.transpose(2, 3).flatten(1, 2).unflatten(2, q.shape[2:])


def assert_same(out, right, leaves, **tolerance):
    torch.testing.assert_close(out, right, **tolerance)
    grad = torch.randn_like(out)
    found = torch.autograd.grad(out, leaves, grad)
    for got, expected in zip(found, torch.autograd.grad(right, leaves, grad), strict=True):
        torch.testing.assert_close(got, expected, **tolerance)


def assert_same_layout(given, returned):
    assert (given.stride(1) == 1) == (returned.stride(1) == 1)
    assert given.dtype == returned.dtype
    assert given.dim() != 3 or returned.is_contiguous()


def dot(q, k, form):
    return split(q, form) @ split(k, form).transpose(2, 3)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("scale", [None, 0.3, -3.0, 1e-6])
@pytest.mark.parametrize("per_head", [False, True])
def test_key_bias(form, scale, per_head):
    q, k, v = inputs(form)
    sizes = k.shape[1:2] if form == "tokens" else k.shape[2:]
    bias = torch.randn(2, HEADS if per_head else 1, *sizes, dtype=q.dtype) * 3
    bias.view(2, -1, math.prod(sizes))[:, :, 3:5] = -INF
    bias.requires_grad_()
    real = 1 / math.sqrt(D) if scale is None else scale
    right = attend(dot(q, k, form) * real + bias.flatten(2)[:, :, None], v, q, form)
    more_q, more_k, used = tdnet_ops.with_key_bias(q, k, bias, scale, HEADS)
    assert used == real
    assert_same_layout(q, more_q)
    assert_same_layout(k, more_k)
    out = tdnet_ops.attention_propagate(more_q, more_k, v, scale=used, heads=HEADS)
    assert_same(out, right, [q, k, v, bias])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mask", ["bool", "-inf", "finfo.min", "-1e4"])
def test_masks_in_every_dtype(dtype, mask):
    """As without the keys that they leave out, and no gradient is a NaN."""
    q, k, v = inputs("maps", dtype)
    kept = torch.rand(2, 1, 2, 6) < 0.5
    kept[1] = ~kept[0]
    kept[1, :, 0, :2] = True
    value = {"-inf": -INF, "finfo.min": torch.finfo(torch.float32).min, "-1e4": -1e4}.get(mask)
    bias = kept if mask == "bool" else torch.zeros(2, 1, 2, 6).masked_fill(~kept, value)
    more_q, more_k, scale = tdnet_ops.with_key_bias(q, k, bias, heads=HEADS)
    out = tdnet_ops.attention_propagate(more_q, more_k, v, scale=scale, heads=HEADS)
    found = torch.autograd.grad(out.float().sum(), [q, k, v])
    assert all(x.isfinite().all() for x in found)
    for sample in range(2):
        some = [x[sample : sample + 1].flatten(2)[:, :, kept[sample].flatten()] for x in (k, v)]
        right = tdnet_ops.attention_propagate(
            q[sample : sample + 1], *(x[:, :, None] for x in some), heads=HEADS
        )
        error = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
        torch.testing.assert_close(out[sample : sample + 1], right, rtol=error, atol=error)


def test_no_key_left_is_the_mean():
    q, k, v = inputs("maps", torch.float32)
    more = tdnet_ops.with_key_bias(q, k, torch.full((1, 1, 2, 6), -INF), heads=HEADS)
    out = tdnet_ops.attention_propagate(*more[:2], v, scale=more[2], heads=HEADS)
    torch.testing.assert_close(out, v.mean((2, 3), keepdim=True).expand_as(out))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_bias_in_half_precision_is_good_to_16_bits(dtype, autocast):
    """Biases near 300 whose differences a half precision number would not hold."""
    q, k = (torch.zeros(1, 4, 1, n, dtype=torch.float32 if autocast else dtype) for n in (1, 64))
    bias = 300 + torch.randn(1, 1, 1, 64)
    v = torch.eye(64).to(q.dtype).view(1, 64, 1, 64)
    with torch.autocast("cpu", dtype, enabled=autocast):
        more_q, more_k, scale = tdnet_ops.with_key_bias(q, k, bias)
        out = tdnet_ops.attention_propagate(more_q, more_k, v, scale=scale)
    right = bias.flatten().softmax(0)
    torch.testing.assert_close(out.flatten().float(), right, rtol=0.02, atol=1e-4)


def test_a_small_scale_in_float16():
    """1 / scale is beyond it."""
    q, k = torch.ones(1, 4, 1, 1).half(), torch.zeros(1, 4, 1, 3).half()
    bias = torch.tensor([1.0, 0.0, -INF])
    more_q, more_k, scale = tdnet_ops.with_key_bias(q, k, bias.view(1, 1, 1, 3), 1e-6)
    v = torch.eye(3).half().view(1, 3, 1, 3)
    out = tdnet_ops.attention_propagate(more_q, more_k, v, scale=scale)
    torch.testing.assert_close(out.flatten().float(), bias.softmax(0), rtol=1e-3, atol=0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("scale", [None, 0.7])
def test_l2_similarity(form, scale):
    q, k, v = inputs(form)
    real = 1 / math.sqrt(D) if scale is None else scale
    difference = split(q, form)[:, :, :, None] - split(k, form)[:, :, None]
    right = attend(-difference.square().sum(-1) * real, v, q, form)
    more_q, more_k, used = tdnet_ops.with_l2_similarity(q, k, scale, HEADS)
    assert_same_layout(q, more_q)
    assert_same_layout(k, more_k)
    out = tdnet_ops.attention_propagate(more_q, more_k, v, scale=used, heads=HEADS)
    assert_same(out, right, [q, k, v])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("scale", [None, 0.7])
def test_shrinkage_and_selection(form, scale):
    """One head of HEADS * D channels."""
    q, k, v = inputs(form)
    channel = 2 if form == "tokens" else 1
    selection = torch.rand_like(q).requires_grad_()
    shrinkage = (1 + torch.rand_like(k).sum(channel, keepdim=True)).detach().requires_grad_()

    def tokens(x):
        return x if form == "tokens" else x.flatten(2).transpose(1, 2)

    difference = tokens(q)[:, :, None] - tokens(k)[:, None]  # [B, N, M, C]
    distance = (tokens(selection)[:, :, None] * difference.square()).sum(-1)
    real = (HEADS * D) ** -0.5 if scale is None else scale
    logits = -tokens(shrinkage).transpose(1, 2) * distance * real
    right = logits.softmax(-1) @ tokens(v)
    if form != "tokens":
        right = right.transpose(1, 2).unflatten(2, q.shape[2:])
    more = tdnet_ops.with_shrinkage_and_selection(q, k, shrinkage, selection, scale)
    assert_same_layout(q, more[0])
    assert_same_layout(k, more[1])
    out = tdnet_ops.attention_propagate(*more[:2], v, scale=more[2])
    assert_same(out, right, [q, k, v, selection, shrinkage])


@pytest.mark.parametrize("form", ["maps", "channels_last"])
@pytest.mark.parametrize("scale", [None, 0.7])
def test_relative_positions(form, scale):
    q, k, v = inputs(form)
    rows = torch.randn(4, 2, D, dtype=q.dtype, requires_grad=True)
    columns = torch.randn(5, 6, D, dtype=q.dtype, requires_grad=True)
    real = 1 / math.sqrt(D) if scale is None else scale
    by_place = split(q, form).unflatten(2, (4, 5))
    along_rows = torch.einsum("bnyxc,yic->bnyxi", by_place, rows)
    along_columns = torch.einsum("bnyxc,xjc->bnyxj", by_place, columns)
    bias = along_rows[..., :, None] + along_columns[..., None, :]
    right = attend(dot(q, k, form) * real + bias.flatten(4).flatten(2, 3), v, q, form)
    more_q, more_k, used = tdnet_ops.with_relative_positions(q, k, rows, columns, scale, HEADS)
    assert_same_layout(q, more_q)
    assert_same_layout(k, more_k)
    out = tdnet_ops.attention_propagate(more_q, more_k, v, scale=used, heads=HEADS)
    assert_same(out, right, [q, k, v, rows, columns])


def test_botnet_scales_the_queries_first():
    """Its relative logits, shifted as its code shifts them: at key i - query y + size - 1."""
    q, k, v = (torch.randn(2, c, 3, 4, dtype=torch.float64) for c in (D, D, D_V))
    height, width = torch.randn(5, D, dtype=q.dtype), torch.randn(7, D, dtype=q.dtype)
    right = torch.empty(2, D_V, 3, 4, dtype=q.dtype)
    for y in range(3):
        for x in range(4):
            scaled = q[:, :, y, x] * 1 / math.sqrt(D)
            key = k + height[2 - y : 5 - y].T[:, :, None] + width[3 - x : 7 - x].T[:, None, :]
            weights = torch.einsum("bc,bcij->bij", scaled, key).flatten(1).softmax(1)
            right[:, :, y, x] = (v.flatten(2) @ weights[:, :, None])[:, :, 0]
    rows = height[torch.arange(3) - torch.arange(3)[:, None] + 2] * 1 / math.sqrt(D)
    columns = width[torch.arange(4) - torch.arange(4)[:, None] + 3] * 1 / math.sqrt(D)
    more_q, more_k, scale = tdnet_ops.with_relative_positions(q, k, rows, columns)
    out = tdnet_ops.attention_propagate(more_q, more_k, v, scale=scale)
    torch.testing.assert_close(out, right)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_in_one_graph(dynamic):
    q, k, v = (torch.randn(1, 6, 5, n) for n in (7, 4, 4))
    rows, columns = torch.randn(5, 5, 6), torch.randn(7, 4, 6)

    def run(q, k, v):
        more = [
            tdnet_ops.with_l2_similarity(q, k),
            tdnet_ops.with_shrinkage_and_selection(q, k, k[:, :1].exp(), q.sigmoid()),
            tdnet_ops.with_relative_positions(q, k, rows, columns),
        ]
        return sum(tdnet_ops.attention_propagate(a, b, v, scale=scale) for a, b, scale in more)

    compiled = torch.compile(run, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    torch.testing.assert_close(compiled(q, k, v), run(q, k, v))


Q, K = torch.ones(2, 6, 3, 4), torch.ones(2, 6, 2, 5)
MASK = torch.zeros(2, 1, 2, 5)
BAD = {
    "no bias": (lambda: tdnet_ops.with_key_bias(Q, K, 1.0), "bias: expected a tensor, got float"),
    "bias": (
        lambda: tdnet_ops.with_key_bias(Q, K, MASK[:, 0]),
        r"bias: expected \[1 or 2, 1 or 1, 2, 5\], got shape \[2, 2, 5\]",
    ),
    "batch of bias": (
        lambda: tdnet_ops.with_key_bias(Q, K, torch.ones(3, 1, 2, 5)),
        r"bias: expected \[1 or 2, 1 or 1, 2, 5\], got shape \[3, 1, 2, 5\]",
    ),
    "heads": (
        lambda: tdnet_ops.with_l2_similarity(Q, K, heads=4),
        r"q: expected channels for 4 heads, got shape \[2, 6, 3, 4\]",
    ),
    "no heads": (
        lambda: tdnet_ops.with_l2_similarity(Q, K, heads=0),
        "heads: expected at least 1, got 0",
    ),
    "scale": (
        lambda: tdnet_ops.with_key_bias(Q, K, MASK, 0.0),
        "scale: expected a number other than 0",
    ),
    "channels": (
        lambda: tdnet_ops.with_l2_similarity(Q, K[:, :5]),
        r"k: expected size 6 .channels of q. in dimension 1, got shape \[2, 5, 2, 5\]",
    ),
    "no tensor": (lambda: tdnet_ops.with_l2_similarity(Q, None), "k: expected a tensor, got None"),
    "integers": (
        lambda: tdnet_ops.with_l2_similarity(Q.int(), K),
        "q: expected float32, float64, float16 or bfloat16, got torch.int32",
    ),
    "selection": (
        lambda: tdnet_ops.with_shrinkage_and_selection(Q, K, K[:, :1], K),
        r"selection: expected shape \[2, 6, 3, 4\] .as q., got \[2, 6, 2, 5\]",
    ),
    "shrinkage": (
        lambda: tdnet_ops.with_shrinkage_and_selection(Q, K, K, Q),
        r"shrinkage: expected shape \[2, 1, 2, 5\] .one number a key., got \[2, 6, 2, 5\]",
    ),
    "rows": (
        lambda: tdnet_ops.with_relative_positions(Q, K, torch.ones(2, 3, 6), torch.ones(4, 5, 6)),
        r"rows: expected shape \[3, 2, 6\] .H, h, d_k., got \[2, 3, 6\]",
    ),
    "columns": (
        lambda: tdnet_ops.with_relative_positions(Q, K, torch.ones(3, 2, 6), None),
        "columns: expected a tensor, got None",
    ),
    "tokens with positions": (
        lambda: tdnet_ops.with_relative_positions(Q.flatten(2), K, Q, Q),
        r"q: expected 4 dimensions, got shape \[2, 6, 12\]",
    ),
    "pooling mode": (
        lambda: tdnet_ops.pool(Q, 2, "floor"),
        r"mode: expected one of \['max', 'subsample', 'floor_max', 'average'\], got 'floor'",
    ),
    "pooling stride": (lambda: tdnet_ops.pool(Q, 0, "average"), "stride: expected at least 1"),
    "pooled map": (
        lambda: tdnet_ops.pool(Q, 4, "floor_max"),
        "x: expected at least 4 x 4 pixels, got 3 x 4",
    ),
    "pooled tensor": (lambda: tdnet_ops.pool(None, 4, "average"), "x: expected a tensor"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_calls(name):
    call, text = BAD[name]
    with pytest.raises((TypeError, ValueError), match=f"^{text}"):
        call()


POOLS = {
    "max": lambda x: F.max_pool2d(x, 3, ceil_mode=True),
    "subsample": lambda x: F.max_pool2d(x, 1, 3),
    "floor_max": torch.nn.MaxPool2d(3),
    "average": torch.nn.AvgPool2d(3),
}


@pytest.mark.parametrize("mode", POOLS)
@pytest.mark.parametrize("size", [(6, 9), (7, 11), (3, 5)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_pool(mode, size, channels_last):
    x = torch.randn(2, 4, *size)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    x.requires_grad_()
    out = tdnet_ops.pool(x, 3, mode)
    assert out.stride(1) == (1 if channels_last else out.shape[2] * out.shape[3])
    assert_same(out, POOLS[mode](x), [x])
