"""softmax_propagate: phi(softmax(affinity) v) + residual with the logits given, Eq. 4 and 5.

As attention_propagate, the logits loaded instead of computed: a program makes QUERIES x CHANNELS
numbers and walks over the keys, KEYS at a time, with an online softmax.
"""

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl
from torch import Tensor

from tdnet_ops.triton.shared import launch, maps, projection
from tdnet_ops.triton.shared.attention_tiles import ShapeClass, candidates
from tdnet_ops.triton.shared.maps import load_tile, store_tile, tile_pointers
from tdnet_ops.triton.shared.products import multiply_add, precision, softmax_divisor, softmax_step
from tdnet_ops.triton.tuning.workloads import Arguments, Inputs


@triton.jit
def propagate(
    affinity,  # [B, queries, keys]
    values,  # [B, keys, channels]
    residual,  # [B, queries, channels] or None
    out,  # [B, queries, channels]
    queries,
    keys,
    channels,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    # Slices of one tile of queries run side by side: they share its logits in the cache.
    slices = tl.cdiv(channels, CHANNELS)
    tiles = tl.cdiv(queries, QUERIES)
    program = tl.program_id(0)
    channel = program % slices * CHANNELS + tl.arange(0, CHANNELS)
    query = program // slices % tiles * QUERIES + tl.arange(0, QUERIES)
    b = program // slices // tiles

    WIDE: tl.constexpr = values.data.dtype.element_ty != tl.float16
    maximum = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    sums = tl.zeros([QUERIES, CHANNELS], tl.float32)
    for first in range(0, keys, KEYS):
        key = first + tl.arange(0, KEYS)
        logits = tl.load(
            tile_pointers(affinity, b, query, key),
            mask=(query < queries)[:, None] & (key < keys)[None, :],
            other=float("-inf"),
        ).to(tl.float32)
        weights, rescale, maximum, total = softmax_step(logits, maximum, total, WIDE)
        v_tile = load_tile(values, b, key, keys, channel, channels)
        sums = multiply_add(weights.to(v_tile.dtype), v_tile, sums * rescale[:, None], PRECISION)

    result = sums / softmax_divisor(total, WIDE)[:, None]
    if residual is not None:
        result += load_tile(residual, b, query, queries, channel, channels).to(tl.float32)
    store_tile(out, b, query, queries, channel, channels, result)


def softmax_propagate(
    affinity: Tensor,
    v: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    allow_tf32: bool,
    *,
    out: Tensor,
) -> None:
    def attend_to(values: Tensor, addend: Tensor | None, result: Tensor) -> None:
        _attend(affinity, values, addend, result, allow_tf32)

    projection.propagate(v, residual, weight, bias, 1, out, allow_tf32, attend_to)


def _attend(
    affinity: Tensor, values: Tensor, residual: Tensor | None, out: Tensor, allow_tf32: bool
) -> None:
    if out.numel() == 0:
        return
    batch, queries, keys = affinity.shape
    shape_class = ShapeClass.of(affinity, batch * queries, 0, values.shape[1], allow_tf32)
    launch.launch(
        propagate,
        affinity,
        f"{shape_class}{launch.strided(values, residual, out)}",
        candidates(shape_class),
        lambda tile: (
            batch
            * launch.cdiv(queries, tile["QUERIES"])
            * launch.cdiv(values.shape[1], tile["CHANNELS"])
        ),
        affinity=maps.matrix(affinity),
        values=maps.tokens(values),
        residual=None if residual is None else maps.tokens(residual),
        out=maps.tokens(out),
        queries=queries,
        keys=keys,
        channels=values.shape[1],
        PRECISION=precision(affinity, allow_tf32),
    )


def workloads(inputs: Inputs) -> Iterator[Arguments]:
    """Calls of each shape class, for tuning/."""
    for like in (inputs.queries, inputs.keys):
        for channels in (128, 512):
            v, residual = inputs.keys(channels), like(channels)
            size = residual.shape[2:]
            affinity = inputs.numbers(1, size.numel(), v[0, 0].numel())
            yield affinity, v, size, residual
