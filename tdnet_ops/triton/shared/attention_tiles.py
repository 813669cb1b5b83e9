"""Shape classes and tiles of the kernels that walk over keys and sum weighted values."""

from __future__ import annotations

import functools
from typing import NamedTuple

from torch import Tensor

from tdnet_ops.triton.shared import launch
from tdnet_ops.triton.tuning.table import Configuration

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
    ("float32", "many"): (
        (32, 32, 128, 4),
        (32, 32, 64, 4),
        (16, 32, 64, 4),
        (16, 32, 32, 4),
        (16, 16, 32, 4),
    ),
    ("float32", "few"): ((16, 32, 128, 4), (16, 32, 64, 4), (16, 32, 32, 4), (16, 16, 32, 4)),
}
_MANY = 8192


class ShapeClass(NamedTuple):
    kind: str
    rows: str  # "many" or "few" queries
    channels: int  # of values, in a slice at most
    depth: str = ""  # "-deep": more key channels than come at once

    @classmethod
    def of(
        cls, like: Tensor, queries: int, key_channels: int, channels: int, allow_tf32: bool
    ) -> ShapeClass:
        """`queries` of all heads together; `key_channels` 0 where the logits are given."""
        kind, rows = launch.kind(like, allow_tf32), "many" if queries > _MANY else "few"
        if key_channels > 64:
            return cls(kind, rows, 128, "-deep")
        return cls(kind, rows, 128 if channels <= 128 else 256)

    def __str__(self) -> str:
        return f"{self.kind}-{self.rows}-{self.channels}{self.depth}"


@functools.cache
def candidates(shape_class: ShapeClass) -> list[Configuration]:
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
