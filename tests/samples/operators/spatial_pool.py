"""Samples of spatial_pool."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from samples.layouts import some_nan
from samples.sample import Build, OperatorSamples, Shape, Size


def build(
    batch: int,
    channels: int,
    size: Size,
    stride: int,
    mode: str,
    edit: Callable[[Tensor], None] | None = None,
) -> Build:
    return lambda numbers: (numbers.feature_map(batch, channels, *size, edit=edit), stride, mode)


SHAPES: dict[str, Shape] = {
    "middle": (2, 5, (7, 6), 2, "max"),
    "subsample": (2, 5, (7, 6), 3, "subsample"),
    "ones": (1, 1, (1, 1), 1, "max"),
    "stride_one": (2, 3, (4, 5), 1, "max"),
    "window_over_map": (1, 129, (3, 2), 9, "max"),
    "subsample_over_map": (1, 3, (3, 2), 9, "subsample"),
    "no_batch": (0, 4, (5, 5), 2, "max"),
    "odd_channels": (1, 151, (13, 9), 4, "max"),
    "large_window": (1, 40, (33, 17), 64, "max"),
    "wide_window": (1, 2, (3, 1100), 600, "max"),
}

TILES: dict[str, Shape] = {
    "nan": (2, 24, (9, 11), 2, "max", some_nan),
    "tall": (1, 40, (70, 3), 3, "max"),
}

VECTORS: dict[str, Shape] = {
    "vectors": (2, 16, (4, 16), 2, "max"),
    "vectors_subsample": (2, 16, (4, 16), 2, "subsample"),
}

SAMPLES = OperatorSamples(
    build=build,
    shapes=SHAPES,
    tiles=TILES,
    vectors=VECTORS,
    resized=lambda size, _: (2, 6, size, 2, "max"),
    several_blocks="odd_channels",
    exact=True,
)
