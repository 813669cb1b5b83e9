"""Stride-1 convolutions of blocks summed without concatenation: Sec. 3.1, and phi of Eq. 4.

    partial = sum_i conv_i(blocks[i])
    total   = act(addends[0] + ... + partial + ... + bias), partial in the place `index`

An implicit product: a program makes PIXELS x OUT_CHANNELS numbers; it walks over blocks, taps of
the kernel and CHANNELS input channels at a time, and gathers the pixels that a tap looks at.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from tdnet_ops.triton.shared import launch, maps
from tdnet_ops.triton.shared.maps import load_tile, store_tile
from tdnet_ops.triton.shared.products import multiply_add, precision
from tdnet_ops.triton.tuning.table import Configuration

# Blocks of one launch; each is compiled in. More of them go through several launches.
_MOST_BLOCKS = 8


@triton.jit
def convolve(
    blocks,  # maps [B, C_i, height, width]
    weights,  # maps [out_channels, C_i, kernel, kernel]
    channel_counts,  # C_i
    height,
    width,
    addends,  # maps [B, out_channels, out_pixels]
    bias,  # [out_channels], bias_stride apart, or None
    bias_stride,
    partial,  # map [B, out_channels, out_pixels] or None
    total,  # likewise, never None
    out_width,
    out_pixels,
    out_channels,
    padding,
    dilation,
    KERNEL: tl.constexpr,
    INDEX: tl.constexpr,
    RELU: tl.constexpr,
    PRECISION: tl.constexpr,
    PIXELS: tl.constexpr,
    OUT_CHANNELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    # Slices of one tile of pixels run side by side: they share its pixels in the cache.
    slices = tl.cdiv(out_channels, OUT_CHANNELS)
    tiles = tl.cdiv(out_pixels, PIXELS)
    program = tl.program_id(0)
    out_channel = program % slices * OUT_CHANNELS + tl.arange(0, OUT_CHANNELS)
    pixel = program // slices % tiles * PIXELS + tl.arange(0, PIXELS)
    b = program // slices // tiles
    out_y = pixel // out_width
    out_x = pixel - out_y * out_width
    some = tl.arange(0, CHANNELS)

    sums = tl.zeros([PIXELS, OUT_CHANNELS], tl.float32)
    for i in tl.static_range(len(blocks)):
        x, weight, channels = blocks[i], weights[i], channel_counts[i]
        for tap in range(KERNEL * KERNEL):
            y_in = out_y + tap // KERNEL * dilation - padding
            x_in = out_x + tap % KERNEL * dilation - padding
            seen = (pixel < out_pixels) & (y_in >= 0) & (y_in < height)
            seen = seen & (x_in >= 0) & (x_in < width)
            row = x.data + b.to(tl.int64) * x.batch
            row += y_in.to(tl.int64) * x.row + x_in.to(tl.int64) * x.column
            corner = weight.data + out_channel.to(tl.int64) * weight.batch
            corner += tap // KERNEL * weight.row + tap % KERNEL * weight.column
            for chunk in range(0, channels, CHANNELS):
                channel = (chunk + some).to(tl.int64)
                x_tile = tl.load(
                    row[:, None] + channel[None, :] * x.channel,
                    mask=seen[:, None] & (channel < channels)[None, :],
                    other=0.0,
                )
                w_tile = tl.load(
                    corner[None, :] + channel[:, None] * weight.channel,
                    mask=(out_channel < out_channels)[None, :] & (channel < channels)[:, None],
                    other=0.0,
                )
                sums = multiply_add(x_tile, w_tile, sums, PRECISION)

    if partial is not None:
        store_tile(partial, b, pixel, out_pixels, out_channel, out_channels, sums)
    result = tl.zeros([PIXELS, OUT_CHANNELS], tl.float32)
    for i in tl.static_range(len(addends) + 1):
        if i == INDEX:
            result += sums
        else:
            addend = addends[i if i < INDEX else i - 1]
            result += load_tile(addend, b, pixel, out_pixels, out_channel, out_channels)
    if bias is not None:
        inside = out_channel < out_channels
        result += tl.load(bias + out_channel * bias_stride, mask=inside, other=0.0)[None, :]
    if RELU:
        # NaN stays NaN.
        result = tl.where(result < 0.0, 0.0, result)
    store_tile(total, b, pixel, out_pixels, out_channel, out_channels, result)


def sum_convolutions(
    blocks: Sequence[Tensor],
    weights: Sequence[Tensor],
    total: Tensor,
    partial: Tensor | None = None,
    addends: Sequence[Tensor] = (),
    index: int = 0,
    bias: Tensor | None = None,
    padding: int = 0,
    dilation: int = 1,
    relu: bool = False,
    allow_tf32: bool = False,
) -> None:
    """Fills in `total` and `partial`, see the top of this file.

    Args:
        blocks: [B, C_i, H, W], any strides.
        weights: [C_out, C_i, k, k].
        total, partial: [B, C_out, H', W'], any strides, of any dtype.
        addends: [B, C_out, H', W'], what else the total sums, in this order.
        index: the place of the partial among them.
    """
    if total.numel() == 0:
        return
    if len(blocks) > _MOST_BLOCKS:
        assert partial is None
        rest = torch.empty_like(total, dtype=torch.float32)
        first, first_weights = blocks[:-_MOST_BLOCKS], weights[:-_MOST_BLOCKS]
        sum_convolutions(
            first,
            first_weights,
            total=rest,
            addends=addends,
            index=index,
            padding=padding,
            dilation=dilation,
            allow_tf32=allow_tf32,
        )
        blocks, weights = blocks[-_MOST_BLOCKS:], weights[-_MOST_BLOCKS:]
        addends, index = (rest,), 1
    batch, out_channels, out_height, out_width = total.shape
    kernel, kind = weights[0].shape[2], launch.kind(blocks[0], allow_tf32)
    columns = 64 if out_channels <= 64 else 128
    # Two results and the partials among them: more to hold.
    update = "" if partial is None else "-update"
    launch.launch(
        convolve,
        blocks[0],
        f"{kind}-{kernel}x{kernel}-{columns}{update}{launch.strided(*blocks, *addends, total)}",
        _candidates(kind, columns),
        lambda tile: (
            batch
            * launch.cdiv(out_height * out_width, tile["PIXELS"])
            * launch.cdiv(out_channels, tile["OUT_CHANNELS"])
        ),
        blocks=tuple(maps.pixels(x) for x in blocks),
        weights=tuple(maps.pixels(weight) for weight in weights),
        channel_counts=tuple(x.shape[1] for x in blocks),
        height=blocks[0].shape[2],
        width=blocks[0].shape[3],
        addends=tuple(maps.tokens(x) for x in addends),
        bias=bias,
        bias_stride=None if bias is None else bias.stride(0),
        partial=None if partial is None else maps.tokens(partial),
        total=maps.tokens(total),
        out_width=out_width,
        out_pixels=out_height * out_width,
        out_channels=out_channels,
        padding=padding,
        dilation=dilation,
        KERNEL=kernel,
        INDEX=index,
        RELU=relu,
        PRECISION=precision(blocks[0], allow_tf32),
    )


# PIXELS, most OUT_CHANNELS, CHANNELS, num_warps: tiles whose sums fit into registers.
_TILES = {
    "half": ((128, 128, 64, 8), (128, 128, 32, 8), (64, 128, 32, 4), (64, 64, 32, 4)),
    "tf32": (
        (128, 128, 32, 8),
        (64, 128, 32, 4),
        (64, 64, 32, 4),
        (64, 64, 16, 4),
        (32, 64, 16, 4),
    ),
    "float32": ((64, 64, 16, 4), (64, 32, 16, 4), (32, 32, 16, 4)),
}


@functools.cache
def _candidates(kind: str, columns: int) -> list[Configuration]:
    return [
        {
            "PIXELS": pixels,
            "OUT_CHANNELS": min(columns, out_channels),
            "CHANNELS": channels,
            "num_warps": warps,
            "num_stages": stages,
        }
        for pixels, out_channels, channels, warps in _TILES[kind]
        for stages in (3, 2)
    ]
