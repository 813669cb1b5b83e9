"""The n x n windows of Eq. 3, those at the end of a map cut, and their maxima."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor


class Window(NamedTuple):
    """What is looked at of each n x n window of a map; those at its end are cut."""

    height: int
    width: int
    stride: int
    map_height: int
    map_width: int

    @classmethod
    def of(cls, x: Tensor, stride: int, mode: str) -> Window:
        height, width = x.shape[2:]
        side = 1 if mode == "subsample" else stride
        return cls(min(side, height), min(side, width), stride, height, width)


@triton.jit
def pool_tile(x, window, b, row, column, inside, channel, channels):
    """Pools the windows at (row, column) of the result: [pixels, channels] in float32."""
    top = row * window.stride
    left = column * window.stride
    corner = x.data + b.to(tl.int64) * x.batch
    corner += top.to(tl.int64) * x.row + left.to(tl.int64) * x.column
    pointers = corner[:, None] + channel.to(tl.int64)[None, :] * x.channel
    best = tl.full(pointers.shape, float("-inf"), tl.float32)
    for dy in range(0, window.height):
        for dx in range(0, window.width):
            seen = inside & (top + dy < window.map_height) & (left + dx < window.map_width)
            numbers = tl.load(
                pointers + (tl.cast(dy, tl.int64) * x.row + tl.cast(dx, tl.int64) * x.column),
                mask=seen[:, None] & (channel < channels)[None, :],
                other=float("-inf"),
            ).to(tl.float32)
            best = tl.maximum(best, numbers, propagate_nan=tl.PropagateNan.ALL)
    return best
