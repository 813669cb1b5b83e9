"""spatial_pool: gamma_n of Eq. 3, the maximum or the top-left pixel of n x n windows, ceil mode.

A program makes PIXELS x CHANNELS numbers and walks over the window. Whichever of the two lies
adjacent in memory is the long side of the tile, so every byte is read once.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from tdnet_ops import checks
from tdnet_ops.layouts import empty_map
from tdnet_ops.triton import launch, maps
from tdnet_ops.triton.maps import store_tile


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


@triton.jit
def pool(
    x,  # map [B, channels, map_height, map_width]
    out,  # map [B, channels, out_pixels]
    window,
    out_width,
    out_pixels,
    channels,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    slices = tl.cdiv(channels, CHANNELS)
    tiles = tl.cdiv(out_pixels, PIXELS)
    program = tl.program_id(0)
    channel = program % slices * CHANNELS + tl.arange(0, CHANNELS)
    pixel = program // slices % tiles * PIXELS + tl.arange(0, PIXELS)
    b = program // slices // tiles
    row = pixel // out_width
    column = pixel - row * out_width
    best = pool_tile(x, window, b, row, column, pixel < out_pixels, channel, channels)
    store_tile(out, b, pixel, out_pixels, channel, channels, best)


def spatial_pool(x: Tensor, stride: int, mode: str = "max") -> Tensor:
    """As tdnet_ops.spatial_pool."""
    checks.spatial_pool(x, stride, mode)
    batch, channels, height, width = x.shape
    out_height, out_width = launch.cdiv(height, stride), launch.cdiv(width, stride)
    out = empty_map(x, [batch, channels, out_height, out_width])
    if out.numel() == 0:
        return out
    layout = "channels" if x.stride(1) == 1 else "pixels"
    launch.launch(
        pool,
        x,
        layout,
        _candidates(layout),
        lambda tile: (
            batch
            * launch.cdiv(out_height * out_width, tile["PIXELS"])
            * launch.cdiv(channels, tile["CHANNELS"])
        ),
        x=maps.pixels(x),
        out=maps.tokens(out),
        window=Window.of(x, stride, mode),
        out_width=out_width,
        out_pixels=out_height * out_width,
        channels=channels,
    )
    return out


@functools.cache
def _candidates(layout: str) -> list[launch.Configuration]:
    """Long where numbers are adjacent: "channels" or "pixels"."""
    return [
        {
            "PIXELS": short if layout == "channels" else long,
            "CHANNELS": long if layout == "channels" else short,
            "num_warps": 4,
        }
        for long, short in ((128, 8), (64, 8), (128, 16), (256, 4))
    ]
