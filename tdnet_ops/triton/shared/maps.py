"""Feature maps and matrices of any strides, as kernels see them."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor


class Map(NamedTuple):
    """A feature map [B, heads * C, H, W] as tokens [B * heads, H * W, C]; strides in elements.

    A map whose pixels lie evenly is one column of H * W pixels: its width is 1, which Triton
    compiles in, as one head, so that no kernel divides by it.
    """

    data: Tensor
    batch: int
    channel: int
    row: int
    column: int
    width: int
    head: int = 0
    heads: int = 1


def pixels(x: Tensor) -> Map:
    """A map whose rows and columns a kernel needs apart."""
    batch, channel, row, column = x.stride()
    return Map(x, batch, channel, row, column, x.shape[3])


def tokens(x: Tensor, heads: int = 1) -> Map:
    """A map whose pixels a kernel counts through."""
    batch, channel, row, column = x.stride()
    height, width = x.shape[2:]
    if height == 1 or row == width * column:
        row, column, width = row if width == 1 else column, 0, 1
    return Map(x, batch, channel, row, column, width, x.shape[1] // heads * channel, heads)


def matrix(x: Tensor) -> Map:
    """A matrix [B, rows, columns]: a token is a row, a channel a column."""
    return Map(x, x.stride(0), x.stride(2), x.stride(1), 0, 1)


@triton.jit
def token_pointers(m, b, token):
    """The first channel of each token, [tokens]. Offsets are of 64 bits: maps may exceed 2^31."""
    row = token // m.width
    offset = row.to(tl.int64) * m.row + (token - row * m.width).to(tl.int64) * m.column
    b = b.to(tl.int64)
    return m.data + b // m.heads * m.batch + b % m.heads * m.head + offset


@triton.jit
def tile_pointers(m, b, token, channel):
    """[tokens, channels]"""
    return token_pointers(m, b, token)[:, None] + channel.to(tl.int64)[None, :] * m.channel


@triton.jit
def load_tile(m, b, token, tokens, channel, channels):
    """Tokens and channels of a map as [tokens, channels]; zeros beyond its sizes."""
    inside = (token < tokens)[:, None] & (channel < channels)[None, :]
    return tl.load(tile_pointers(m, b, token, channel), mask=inside, other=0.0)


@triton.jit
def store_tile(m, b, token, tokens, channel, channels, numbers):
    """The like to memory, in the map's dtype."""
    inside = (token < tokens)[:, None] & (channel < channels)[None, :]
    numbers = numbers.to(m.data.dtype.element_ty)
    tl.store(tile_pointers(m, b, token, channel), numbers, mask=inside)
