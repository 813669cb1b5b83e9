"""attention_propagate_backward: gradients of q, k, v and phi, the affinity recomputed in tiles.

With values = phi(v), weights A = softmax(q k^T * scale) and the gradient G of the result:

    grad_weights = G values^T
    grad_logits  = A * (grad_weights - delta) * scale,  delta = sum_m A grad_weights
    grad_q = grad_logits k        grad_k = grad_logits^T q        grad_values = A^T G

Of the forward pass there is the log-sum-exp of every row: A = exp(q k^T * scale - log_sum_exp).
Four kernels: delta of every row, then one a gradient. Sums over queries
run in a few splits whose partial results are added in a fixed order: nothing is atomic, gradients
are the same every time.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tdnet_ops import gradients
from tdnet_ops.triton.shared import launch, maps
from tdnet_ops.triton.shared.maps import load_tile, store_tile
from tdnet_ops.triton.shared.products import multiply_add, precision
from tdnet_ops.triton.tuning.table import Configuration
from tdnet_ops.triton.tuning.workloads import Arguments, Inputs

# Enough programs to fill a large GPU a few times over.
_PROGRAMS = 512
# Queries of the smallest part of a sum over them: whole tiles, whatever their size.
_SPLIT = 512


class Sizes(NamedTuple):
    queries: int
    keys: int
    key_channels: int
    channels: int
    scale: float


class Rows(NamedTuple):
    """Of each query, [B, queries] in float32, contiguous."""

    log_sum_exp: Tensor
    delta: Tensor


@triton.jit
def product(
    a, b, batch, row, rows, column, columns, depth,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Tokens `row` of a times tokens `column` of b, over all their channels: [rows, columns]."""
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(0, depth, DEPTH):
        channel = first + tl.arange(0, DEPTH)
        a_tile = load_tile(a, batch, row, rows, channel, depth)
        b_tile = load_tile(b, batch, column, columns, channel, depth)
        total = multiply_add(a_tile, tl.trans(b_tile), total, PRECISION)
    return total


@triton.jit
def logits_of(
    q, k, sizes, b, query, key,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """[queries, keys]; -inf beyond the last key."""
    logits = product(
        q, k, b, query, sizes.queries, key, sizes.keys, sizes.key_channels,
        QUERIES, KEYS, DEPTH, PRECISION,
    )  # fmt: skip
    return tl.where((key < sizes.keys)[None, :], logits * sizes.scale, float("-inf"))


@triton.jit
def grad_weights_of(
    grad, v, sizes, b, query, key,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    return product(
        grad, v, b, query, sizes.queries, key, sizes.keys, sizes.channels,
        QUERIES, KEYS, DEPTH, PRECISION,
    )  # fmt: skip


@triton.jit
def weights_of(rows, sizes, b, query, logits):
    """softmax(logits); 0 beyond the last query, where the logits of an infinite key are NaN."""
    place = b.to(tl.int64) * sizes.queries + query
    inside = query < sizes.queries
    log_sum_exp = tl.load(rows.log_sum_exp + place, mask=inside, other=0.0)
    return tl.where(inside[:, None], tl.exp(logits - log_sum_exp[:, None]), 0.0)


@triton.jit
def grad_logits_of(rows, sizes, b, query, weights, grad_weights):
    place = b.to(tl.int64) * sizes.queries + query
    delta = tl.load(rows.delta + place, mask=query < sizes.queries, other=0.0)
    return weights * (grad_weights - delta[:, None]) * sizes.scale


@triton.jit
def row_deltas(
    q,  # [B, queries, key_channels]
    k,  # [B, keys, key_channels]
    v,  # [B, keys, channels], phi folded in
    grad,  # [B, queries, channels], of the result
    sizes,
    rows,  # delta is written here, and read by the kernels below
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    tiles = tl.cdiv(sizes.queries, QUERIES)
    program = tl.program_id(0)
    query = program % tiles * QUERIES + tl.arange(0, QUERIES)
    b = program // tiles
    delta = tl.zeros([QUERIES], tl.float32)
    for first in range(0, sizes.keys, KEYS):
        key = first + tl.arange(0, KEYS)
        logits = logits_of(q, k, sizes, b, query, key, QUERIES, KEYS, DEPTH, PRECISION)
        weights = weights_of(rows, sizes, b, query, logits)
        grad_weights = grad_weights_of(
            grad, v, sizes, b, query, key, QUERIES, KEYS, DEPTH, PRECISION
        )
        delta += tl.sum(weights * grad_weights, 1)
    place = b.to(tl.int64) * sizes.queries + query
    tl.store(rows.delta + place, delta, mask=query < sizes.queries)


@triton.jit
def query_gradients(
    q,
    k,
    v,
    grad,
    sizes,
    rows,
    grad_q,  # [B, queries, key_channels]
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    DEPTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    slices = tl.cdiv(sizes.key_channels, CHANNELS)
    tiles = tl.cdiv(sizes.queries, QUERIES)
    program = tl.program_id(0)
    channel = program % slices * CHANNELS + tl.arange(0, CHANNELS)
    query = program // slices % tiles * QUERIES + tl.arange(0, QUERIES)
    b = program // slices // tiles
    sums = tl.zeros([QUERIES, CHANNELS], tl.float32)
    for first in range(0, sizes.keys, KEYS):
        key = first + tl.arange(0, KEYS)
        logits = logits_of(q, k, sizes, b, query, key, QUERIES, KEYS, DEPTH, PRECISION)
        weights = weights_of(rows, sizes, b, query, logits)
        grad_weights = grad_weights_of(
            grad, v, sizes, b, query, key, QUERIES, KEYS, DEPTH, PRECISION
        )
        grad_logits = grad_logits_of(rows, sizes, b, query, weights, grad_weights)
        k_tile = load_tile(k, b, key, sizes.keys, channel, sizes.key_channels)
        sums = multiply_add(grad_logits.to(k_tile.dtype), k_tile, sums, PRECISION)
    store_tile(grad_q, b, query, sizes.queries, channel, sizes.key_channels, sums)


@triton.jit
def key_gradients(
    q,
    k,
    v,
    grad,
    sizes,
    rows,
    partials,  # [splits * B, keys, key_channels]
    batch,
    split,  # queries of a part, whole tiles
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    DEPTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    slices = tl.cdiv(sizes.key_channels, CHANNELS)
    tiles = tl.cdiv(sizes.keys, KEYS)
    program = tl.program_id(0)
    channel = program % slices * CHANNELS + tl.arange(0, CHANNELS)
    key = program // slices % tiles * KEYS + tl.arange(0, KEYS)
    part = program // slices // tiles
    b = part % batch
    begin = part // batch * split
    sums = tl.zeros([KEYS, CHANNELS], tl.float32)
    for first in range(begin, begin + split, QUERIES):
        query = first + tl.arange(0, QUERIES)
        logits = logits_of(q, k, sizes, b, query, key, QUERIES, KEYS, DEPTH, PRECISION)
        weights = weights_of(rows, sizes, b, query, logits)
        grad_weights = grad_weights_of(
            grad, v, sizes, b, query, key, QUERIES, KEYS, DEPTH, PRECISION
        )
        grad_logits = grad_logits_of(rows, sizes, b, query, weights, grad_weights)
        q_tile = load_tile(q, b, query, sizes.queries, channel, sizes.key_channels)
        sums = multiply_add(tl.trans(grad_logits.to(q_tile.dtype)), q_tile, sums, PRECISION)
    store_tile(partials, part, key, sizes.keys, channel, sizes.key_channels, sums)


@triton.jit
def value_gradients(
    q,
    k,
    v,
    grad,
    sizes,
    rows,
    partials,  # [splits * B, keys, channels]
    batch,
    split,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    DEPTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    slices = tl.cdiv(sizes.channels, CHANNELS)
    tiles = tl.cdiv(sizes.keys, KEYS)
    program = tl.program_id(0)
    channel = program % slices * CHANNELS + tl.arange(0, CHANNELS)
    key = program // slices % tiles * KEYS + tl.arange(0, KEYS)
    part = program // slices // tiles
    b = part % batch
    begin = part // batch * split
    sums = tl.zeros([KEYS, CHANNELS], tl.float32)
    for first in range(begin, begin + split, QUERIES):
        query = first + tl.arange(0, QUERIES)
        logits = logits_of(q, k, sizes, b, query, key, QUERIES, KEYS, DEPTH, PRECISION)
        weights = weights_of(rows, sizes, b, query, logits)
        g_tile = load_tile(grad, b, query, sizes.queries, channel, sizes.channels)
        sums = multiply_add(tl.trans(weights.to(g_tile.dtype)), g_tile, sums, PRECISION)
    store_tile(partials, part, key, sizes.keys, channel, sizes.channels, sums)


def attention_propagate_backward(
    grad: Tensor,
    grad_log_sum_exp: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    weight: Tensor | None,
    log_sum_exp: Tensor,
    scale: float | None,
    heads: int,
    allow_tf32: bool,
    *,
    out: tuple[Tensor, Tensor, Tensor, Tensor],
) -> None:
    """Gradients of q, k, v and weight (empty without one).

    Args:
        grad: [B, d_out, H, W], of the result.
        log_sum_exp: [B, heads, H, W] in float32, of attention_propagate_forward.
    """
    grad_q, grad_k, grad_v, grad_weight = out
    if grad.numel() == 0:
        for gradient in out:
            gradient.zero_()
        return
    with gradients.products_in(q, allow_tf32):
        values = gradients.fold(v, weight, heads).to(v.dtype)
    kind = launch.kind(q, allow_tf32)
    batch, channels = q.shape[0] * heads, q.shape[1] // heads
    queries, keys = q[0, 0].numel(), k[0, 0].numel()
    sizes = Sizes(
        queries=queries,
        keys=keys,
        key_channels=channels,
        channels=values.shape[2],
        scale=gradients.scale_of(q, scale, heads),
    )
    shape_class = f"{kind}{launch.strided(q, k, grad)}"
    rows = Rows(log_sum_exp.contiguous(), q.new_empty([batch, queries], dtype=torch.float32))
    inputs = {
        "q": maps.tokens(q, heads),
        "k": maps.tokens(k, heads),
        "v": maps.matrix(values),
        "grad": maps.tokens(grad, heads),
        "sizes": sizes,
        "rows": rows,
        "PRECISION": precision(q, allow_tf32),
    }
    launch.launch(
        row_deltas,
        q,
        shape_class,
        _candidates(kind),
        lambda tile: batch * launch.cdiv(queries, tile["QUERIES"]),
        **inputs,
    )
    if grad_log_sum_exp is not None:
        rows.delta.sub_(grad_log_sum_exp.reshape(batch, queries))
    launch.launch(
        query_gradients,
        q,
        shape_class,
        _candidates(kind, CHANNELS=64),
        lambda tile: (
            batch * launch.cdiv(queries, tile["QUERIES"]) * launch.cdiv(channels, tile["CHANNELS"])
        ),
        **inputs,
        grad_q=maps.tokens(grad_q, heads),
    )
    grad_keys = _sum_over_queries(key_gradients, q, batch, kind, shape_class, inputs, channels)
    grad_values = _sum_over_queries(
        value_gradients, q, batch, kind, shape_class, inputs, values.shape[2]
    )
    with gradients.products_in(q, allow_tf32):
        of_v, of_weight = gradients.unfold(grad_values, v, weight)
    grad_k.copy_(gradients.as_map(grad_keys, k))
    grad_v.copy_(of_v)
    if of_weight is not None:
        grad_weight.copy_(of_weight)


def _sum_over_queries(
    kernel: Any,
    like: Tensor,
    batch: int,
    kind: str,
    shape_class: str,
    inputs: dict[str, Any],
    channels: int,
) -> Tensor:
    """grad_logits^T q or A^T G: [batch, keys, channels] in float32."""
    sizes = inputs["sizes"]
    together = batch * launch.cdiv(sizes.keys, 64) * launch.cdiv(channels, 64)
    tiles = launch.cdiv(sizes.queries, _SPLIT)
    split = launch.cdiv(tiles, max(1, _PROGRAMS // together)) * _SPLIT
    parts = launch.cdiv(sizes.queries, split)
    partials = like.new_empty([parts * batch, sizes.keys, channels], dtype=torch.float32)
    launch.launch(
        kernel,
        like,
        shape_class,
        _candidates(kind, CHANNELS=64),
        lambda tile: (
            parts
            * batch
            * launch.cdiv(sizes.keys, tile["KEYS"])
            * launch.cdiv(channels, tile["CHANNELS"])
        ),
        **inputs,
        partials=maps.matrix(partials),
        batch=batch,
        split=split,
    )
    return partials.unflatten(0, (parts, batch)).sum(0)


# QUERIES, KEYS, DEPTH, num_warps: tiles whose logits, their gradients and sums fit into registers.
_TILES = {
    "half": ((128, 64, 64, 8), (64, 64, 64, 4), (64, 32, 64, 4), (32, 32, 64, 4), (32, 32, 32, 4)),
    "tf32": ((64, 64, 32, 8), (64, 32, 32, 4), (32, 32, 32, 4), (32, 32, 16, 4)),
    "float32": ((32, 32, 32, 4), (32, 32, 16, 4), (16, 32, 16, 4)),
}


@functools.cache
def _candidates(kind: str, **constants: int) -> list[Configuration]:
    return [
        {
            "QUERIES": queries,
            "KEYS": keys,
            "DEPTH": depth,
            "num_warps": warps,
            "num_stages": stages,
            **constants,
        }
        for queries, keys, depth, warps in _TILES[kind]
        for stages in (3, 2)
    ]


def workloads(inputs: Inputs) -> Iterator[Arguments]:
    """Calls of each shape class, for tuning/."""
    q, k, v = inputs.queries(64), inputs.keys(64), inputs.keys(512)
    grad = inputs.queries(512)
    log_sum_exp = torch.zeros(1, 1, *q.shape[2:], device=q.device)
    yield grad, None, q, k, v, None, log_sum_exp, None, 1
