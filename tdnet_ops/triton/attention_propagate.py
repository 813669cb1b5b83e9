"""attention_propagate: phi(softmax(q k^T * scale) v) + residual, Eq. 4 and 5, one pass.

    values = phi(v) + bias             [B, M, d_out], where folding is cheaper (fold)
    out[n] = sum_m softmax_m(q[n] k[m] * scale) values[m] + residual[n]

A program makes QUERIES x CHANNELS numbers of one map: it walks over the keys, KEYS at a time, keeps
the running maximum and sum of each row, and rescales what it has summed when the maximum grows.
Each slice of CHANNELS value channels computes the logits again, so that the sums of 512 channels
stay in registers. The affinity never exists.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from tdnet_ops import checks
from tdnet_ops.layouts import empty_map
from tdnet_ops.triton import launch, maps, projection
from tdnet_ops.triton.maps import load_tile, store_tile
from tdnet_ops.triton.products import multiply_add, precision, softmax_divisor, softmax_step


@triton.jit
def attend(
    q,  # [B, queries, key_channels]
    k,  # [B, keys, key_channels]
    values,  # [B, keys, channels]
    residual,  # [B, queries, channels] or None
    out,  # [B, queries, channels]
    queries,
    keys,
    key_channels,
    channels,
    scale,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    KEY_CHANNELS: tl.constexpr,  # at once
    CHANNELS: tl.constexpr,
    ONE_CHUNK: tl.constexpr,  # key_channels <= KEY_CHANNELS
    PRECISION: tl.constexpr,
):
    # Slices of one tile of queries run side by side: they share its queries in the cache.
    slices = tl.cdiv(channels, CHANNELS)
    tiles = tl.cdiv(queries, QUERIES)
    program = tl.program_id(0)
    channel = program % slices * CHANNELS + tl.arange(0, CHANNELS)
    query = program // slices % tiles * QUERIES + tl.arange(0, QUERIES)
    b = program // slices // tiles
    some = tl.arange(0, KEY_CHANNELS)
    if ONE_CHUNK:
        q_tile = load_tile(q, b, query, queries, some, key_channels)

    WIDE: tl.constexpr = values.data.dtype.element_ty != tl.float16
    maximum = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    sums = tl.zeros([QUERIES, CHANNELS], tl.float32)
    for first in range(0, keys, KEYS):
        key = first + tl.arange(0, KEYS)
        logits = tl.zeros([QUERIES, KEYS], tl.float32)
        if ONE_CHUNK:
            k_tile = load_tile(k, b, key, keys, some, key_channels)
            logits = multiply_add(q_tile, tl.trans(k_tile), logits, PRECISION)
        else:
            for chunk in range(0, key_channels, KEY_CHANNELS):
                q_tile = load_tile(q, b, query, queries, chunk + some, key_channels)
                k_tile = load_tile(k, b, key, keys, chunk + some, key_channels)
                logits = multiply_add(q_tile, tl.trans(k_tile), logits, PRECISION)
        logits = tl.where((key < keys)[None, :], logits * scale, float("-inf"))
        weights, rescale, maximum, total = softmax_step(logits, maximum, total, WIDE)
        v_tile = load_tile(values, b, key, keys, channel, channels)
        sums = multiply_add(weights.to(v_tile.dtype), v_tile, sums * rescale[:, None], PRECISION)

    result = sums / softmax_divisor(total, WIDE)[:, None]
    if residual is not None:
        result += load_tile(residual, b, query, queries, channel, channels).to(tl.float32)
    store_tile(out, b, query, queries, channel, channels, result)


def attention_propagate(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    residual: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
    *,
    allow_tf32: bool = False,
) -> Tensor:
    """As tdnet_ops.attention_propagate."""
    checks.attention_propagate(q, k, v, residual, weight, bias)
    channels = v.shape[1] if weight is None else weight.shape[0]
    out = empty_map(q, [q.shape[0], channels, *q.shape[2:]])
    scale = 1 / math.sqrt(q.shape[1]) if scale is None else scale

    def run(values: Tensor, addend: Tensor | None, result: Tensor) -> None:
        _run(q, k, values, addend, result, scale, allow_tf32)

    projection.propagate(v, residual, weight, bias, out, allow_tf32, run)
    return out


def _run(
    q: Tensor,
    k: Tensor,
    values: Tensor,
    residual: Tensor | None,
    out: Tensor,
    scale: float,
    allow_tf32: bool,
) -> None:
    if out.numel() == 0:
        return
    queries, keys = q.shape[2] * q.shape[3], k.shape[2] * k.shape[3]
    shape_class = ShapeClass.of(q, q.shape[0] * queries, q.shape[1], values, allow_tf32)
    key_channels = launch.padded(q.shape[1], most=64)
    launch.launch(
        attend,
        q,
        f"{shape_class}{launch.layout(q, k, values, residual, out)}",
        candidates(shape_class),
        lambda tile: (
            q.shape[0]
            * launch.cdiv(queries, tile["QUERIES"])
            * launch.cdiv(values.shape[1], tile["CHANNELS"])
        ),
        q=maps.tokens(q),
        k=maps.tokens(k),
        values=maps.tokens(values),
        residual=None if residual is None else maps.tokens(residual),
        out=maps.tokens(out),
        queries=queries,
        keys=keys,
        key_channels=q.shape[1],
        channels=values.shape[1],
        scale=scale,
        KEY_CHANNELS=key_channels,
        ONE_CHUNK=q.shape[1] <= key_channels,
        PRECISION=precision(q, allow_tf32),
    )


# QUERIES, KEYS, most CHANNELS, num_warps: tiles whose sums, QUERIES x CHANNELS in float32, fit into
# registers, the largest first; smaller ones where a map has few queries, to make enough programs.
_TILES = {
    ("half", "many"): (
        (128, 64, 256, 8),
        (128, 64, 128, 8),
        (64, 64, 256, 8),
        (64, 64, 128, 4),
        (64, 32, 128, 8),
        (64, 32, 64, 4),
    ),
    ("half", "few"): (
        (32, 64, 128, 4),
        (16, 64, 128, 4),
        (32, 64, 64, 4),
        (32, 32, 64, 4),
        (16, 32, 64, 4),
    ),
    ("tf32", "many"): ((128, 32, 128, 8), (64, 32, 128, 4), (64, 32, 128, 8), (64, 32, 64, 8)),
    ("tf32", "few"): ((32, 32, 128, 4), (32, 32, 64, 4), (16, 32, 64, 4), (16, 32, 32, 4)),
    ("float32", "many"): ((32, 32, 128, 4), (32, 32, 64, 4), (16, 32, 64, 4), (16, 32, 32, 4)),
    ("float32", "few"): ((16, 32, 128, 4), (16, 32, 64, 4), (16, 32, 32, 4)),
}
_MANY = 8192


class ShapeClass(NamedTuple):
    kind: str
    rows: str  # "many" or "few" queries
    channels: int  # of values, in a slice at most
    depth: str = ""  # "-deep": more key channels than come at once

    @classmethod
    def of(
        cls, like: Tensor, queries: int, key_channels: int, values: Tensor, allow_tf32: bool
    ) -> ShapeClass:
        """`queries` of all maps together; `key_channels` 0 where the logits are given."""
        kind, rows = launch.kind(like, allow_tf32), "many" if queries > _MANY else "few"
        if key_channels > 64:
            return cls(kind, rows, 128, "-deep")
        return cls(kind, rows, 128 if values.shape[1] <= 128 else 256)

    def __str__(self) -> str:
        return f"{self.kind}-{self.rows}-{self.channels}{self.depth}"


@functools.cache
def candidates(shape_class: ShapeClass) -> list[launch.Configuration]:
    kind, rows, channels, _ = shape_class
    tiles = (
        (queries, keys, min(channels, slice_), warps)
        for queries, keys, slice_, warps in _TILES[kind, rows]
    )
    return [
        {
            "QUERIES": queries,
            "KEYS": keys,
            "CHANNELS": slice_,
            "num_warps": warps,
            "num_stages": stages,
        }
        for queries, keys, slice_, warps in dict.fromkeys(tiles)  # each once
        for stages in (3, 2)
    ]
