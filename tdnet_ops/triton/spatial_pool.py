"""spatial_pool: gamma_n of Eq. 3, the maximum or the top-left pixel of n x n windows, ceil mode.

A program makes PIXELS x CHANNELS numbers and walks over the window. Whichever of the two lies
adjacent in memory is the long side of the tile, so every byte is read once.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import triton
import triton.language as tl
from torch import Tensor

from tdnet_ops.triton.shared import launch, maps
from tdnet_ops.triton.shared.maps import store_tile
from tdnet_ops.triton.shared.windows import Window, pool_tile
from tdnet_ops.triton.tuning.table import Configuration
from tdnet_ops.triton.tuning.workloads import Arguments, Inputs


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


def spatial_pool(x: Tensor, stride: int, mode: str, *, out: Tensor) -> None:
    batch, channels, out_height, out_width = out.shape
    if out.numel() == 0:
        return
    adjacent = "channels" if x.stride(1) == 1 else "pixels"
    launch.launch(
        pool,
        x,
        adjacent,
        _candidates(adjacent),
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


@functools.cache
def _candidates(adjacent: str) -> list[Configuration]:
    """Long where numbers are adjacent in memory: "channels" or "pixels"."""
    return [
        {
            "PIXELS": short if adjacent == "channels" else long,
            "CHANNELS": long if adjacent == "channels" else short,
            "num_warps": 4,
        }
        for long, short in ((128, 8), (64, 8), (128, 16), (256, 4))
    ]


def workloads(inputs: Inputs) -> Iterator[Arguments]:
    """Calls of each shape class, for tuning/."""
    yield inputs.queries(512), 4
