"""attention_propagate: phi(softmax(q k^T * scale) v) + residual, Eq. 4 and 5, one pass.

    values = phi(v) + bias             [B, M, d_out], where folding is cheaper (fold)
    out[n] = sum_m softmax_m(q[n] k[m] * scale) values[m] + residual[n]

A program makes QUERIES x CHANNELS numbers of one map: it walks over the keys, KEYS at a time, keeps
the running maximum and sum of each row, and rescales what it has summed when the maximum grows.
Each slice of CHANNELS value channels computes the logits again, so that the sums of 512 channels
stay in registers. The affinity never exists.
"""

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl
from torch import Tensor

from tdnet_ops import gradients
from tdnet_ops.triton.shared import launch, maps, projection
from tdnet_ops.triton.shared.attention_tiles import ShapeClass, candidates
from tdnet_ops.triton.shared.maps import load_tile, store_tile
from tdnet_ops.triton.shared.products import multiply_add, precision, softmax_divisor, softmax_step
from tdnet_ops.triton.tuning.workloads import Arguments, Inputs


@triton.jit
def attend(
    q,  # [B, queries, key_channels]
    k,  # [B, keys, key_channels]
    values,  # [B, keys, channels]
    residual,  # [B, queries, channels] or None
    out,  # [B, queries, channels]
    log_sum_exp,  # of each query's logits, [B, queries] in float32, or None
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
    if log_sum_exp is not None:
        # Every slice has it; the first one's programs write it.
        mine = (query < queries) & (program % slices == 0)
        tl.store(log_sum_exp + b.to(tl.int64) * queries + query, maximum + tl.log(total), mask=mine)


def attention_propagate(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: float | None,
    heads: int,
    allow_tf32: bool,
    *,
    out: Tensor,
    log_sum_exp: Tensor | None = None,
) -> None:
    """Fills in `log_sum_exp`, [B, heads, H, W] in float32, too if it is given."""
    scale = gradients.scale_of(q, scale, heads)

    def attend_to(values: Tensor, addend: Tensor | None, result: Tensor) -> None:
        _attend(q, k, values, addend, result, log_sum_exp, scale, heads, allow_tf32)

    projection.propagate(v, residual, weight, bias, heads, out, allow_tf32, attend_to)


def _attend(
    q: Tensor,
    k: Tensor,
    values: Tensor,
    residual: Tensor | None,
    out: Tensor,
    log_sum_exp: Tensor | None,
    scale: float,
    heads: int,
    allow_tf32: bool,
) -> None:
    if out.numel() == 0:
        return
    batch, queries, keys = q.shape[0] * heads, q.shape[2] * q.shape[3], k.shape[2] * k.shape[3]
    key_channels, channels = q.shape[1] // heads, values.shape[1] // heads
    shape_class = ShapeClass.of(q, batch * queries, key_channels, channels, allow_tf32)
    key_channels_at_once = launch.padded(key_channels, most=64)
    launch.launch(
        attend,
        q,
        f"{shape_class}{launch.strided(q, k, values, residual, out)}",
        candidates(shape_class),
        lambda tile: (
            batch * launch.cdiv(queries, tile["QUERIES"]) * launch.cdiv(channels, tile["CHANNELS"])
        ),
        q=maps.tokens(q, heads),
        k=maps.tokens(k, heads),
        values=maps.tokens(values, heads),
        residual=None if residual is None else maps.tokens(residual, heads),
        out=maps.tokens(out, heads),
        log_sum_exp=log_sum_exp,
        queries=queries,
        keys=keys,
        key_channels=key_channels,
        channels=channels,
        scale=scale,
        KEY_CHANNELS=key_channels_at_once,
        ONE_CHUNK=key_channels <= key_channels_at_once,
        PRECISION=precision(q, allow_tf32),
    )


def workloads(inputs: Inputs) -> Iterator[Arguments]:
    """Calls of each shape class, for tuning/; as in the model, with a residual to hold."""
    for like in (inputs.queries, inputs.keys):
        for key_channels, channels in ((64, 128), (64, 512), (256, 128)):
            yield (
                like(key_channels),
                inputs.keys(key_channels),
                inputs.keys(channels),
                like(channels),
            )
