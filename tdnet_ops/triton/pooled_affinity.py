"""pooled_affinity: the logits of Eq. 1 against pooled keys, q gamma_n(k)^T * scale.

A program makes KEYS columns of TILES * QUERIES rows: it pools its keys once, channel chunk by
channel chunk where they are many, and multiplies them with its tiles of queries in turn.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import triton
import triton.language as tl
from torch import Tensor

from tdnet_ops import checks, gradients
from tdnet_ops.triton.shared import launch, maps
from tdnet_ops.triton.shared.maps import load_tile, store_tile
from tdnet_ops.triton.shared.products import multiply_add, precision
from tdnet_ops.triton.shared.windows import Window, pool_tile
from tdnet_ops.triton.tuning.table import Configuration
from tdnet_ops.triton.tuning.workloads import Arguments, Inputs


@triton.jit
def affinity_tiles(
    q,  # [B, queries, channels]
    k,  # map [B, channels, H_k, W_k], not yet pooled
    affinity,  # [B, queries, keys]
    window,
    queries,
    keys,
    pooled_width,
    channels,
    scale,
    ONE_CHUNK: tl.constexpr,  # channels <= CHANNELS
    CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    TILES: tl.constexpr,
):
    key_tiles = tl.cdiv(keys, KEYS)
    groups = tl.cdiv(queries, TILES * QUERIES)
    program = tl.program_id(0)
    key = program % key_tiles * KEYS + tl.arange(0, KEYS)
    first = program // key_tiles % groups * (TILES * QUERIES)
    b = program // key_tiles // groups
    row = key // pooled_width
    column = key - row * pooled_width
    some = tl.arange(0, CHANNELS)
    if ONE_CHUNK:
        pooled = pool_tile(k, window, b, row, column, key < keys, some, channels)
        # Beyond the last channel and key there are -inf: times zero they would be NaN.
        pooled = tl.where((key < keys)[:, None] & (some < channels)[None, :], pooled, 0.0)
        pooled = tl.trans(pooled.to(k.data.dtype.element_ty))
    for tile in range(0, TILES):
        query = first + tile * QUERIES + tl.arange(0, QUERIES)
        logits = tl.zeros([QUERIES, KEYS], tl.float32)
        if ONE_CHUNK:
            q_tile = load_tile(q, b, query, queries, some, channels)
            logits = multiply_add(q_tile, pooled, logits, PRECISION)
        else:
            for chunk in range(0, channels, CHANNELS):
                channel = chunk + some
                part = pool_tile(k, window, b, row, column, key < keys, channel, channels)
                part = tl.where((key < keys)[:, None] & (channel < channels)[None, :], part, 0.0)
                q_tile = load_tile(q, b, query, queries, channel, channels)
                part = tl.trans(part.to(k.data.dtype.element_ty))
                logits = multiply_add(q_tile, part, logits, PRECISION)
        store_tile(affinity, b, query, queries, key, keys, logits * scale)


def pooled_affinity(
    q: Tensor,
    k: Tensor,
    stride: int,
    mode: str,
    scale: float | None,
    allow_tf32: bool,
    *,
    out: Tensor,
) -> None:
    batch, queries, keys = out.shape
    channels = q.shape[1]
    if out.numel() == 0:
        return
    kind = launch.kind(q, allow_tf32)
    launch.launch(
        affinity_tiles,
        q,
        f"{kind}{'-deep' if channels > 64 else ''}{launch.strided(q, k)}",
        _candidates(kind),
        lambda tile: (
            batch
            * launch.cdiv(queries, tile["QUERIES"] * tile["TILES"])
            * launch.cdiv(keys, tile["KEYS"])
        ),
        q=maps.tokens(q),
        k=maps.pixels(k),
        affinity=maps.matrix(out),
        window=Window.of(k, stride, mode),
        queries=queries,
        keys=keys,
        pooled_width=checks.pooled_size(k, stride)[1],
        channels=channels,
        scale=gradients.scale_of(q, scale),
        ONE_CHUNK=channels <= 64,
        CHANNELS=launch.padded(channels, most=64),
        PRECISION=precision(q, allow_tf32),
    )


# QUERIES, KEYS, num_warps
_TILES = {
    "half": ((128, 64, 4), (64, 64, 4), (64, 32, 4), (32, 32, 4), (16, 32, 4)),
    "tf32": ((64, 64, 4), (64, 32, 4), (32, 32, 4), (16, 32, 4)),
    "float32": ((64, 32, 4), (32, 32, 4), (16, 32, 4)),
}


@functools.cache
def _candidates(kind: str) -> list[Configuration]:
    return [
        {
            "QUERIES": queries,
            "KEYS": keys,
            "TILES": tiles,
            "num_warps": warps,
            "num_stages": 2,
        }
        for queries, keys, warps in _TILES[kind]
        for tiles in (8, 32)
    ]


def workloads(inputs: Inputs) -> Iterator[Arguments]:
    """Calls of each shape class, for tuning/."""
    for channels in (64, 256):
        x = inputs.queries(channels)
        yield x, x, 4
