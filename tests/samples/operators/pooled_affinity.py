"""Samples of pooled_affinity."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from samples.layouts import some_nan
from samples.sample import Build, OperatorSamples, Shape, Size


def build(
    batch: int,
    channels: int,
    size: Size,
    key_size: Size,
    stride: int,
    mode: str,
    scale: float | None = None,
    edit: Callable[[Tensor], None] | None = None,
) -> Build:
    """`edit` changes the keys."""
    return lambda numbers: (
        numbers.feature_map(batch, channels, *size),
        numbers.feature_map(batch, channels, *key_size, edit=edit),
        stride,
        mode,
        scale,
    )


SHAPES: dict[str, Shape] = {
    "middle": (2, 6, (5, 4), (5, 6), 2, "max"),
    "subsample": (2, 6, (5, 4), (7, 6), 3, "subsample"),
    "ones": (1, 1, (1, 1), (1, 1), 1, "max"),
    "one_key": (2, 64, (3, 5), (4, 3), 5, "max"),
    "one_query": (1, 33, (1, 1), (13, 7), 1, "max", 0.5),
    "no_batch": (0, 3, (4, 5), (4, 5), 2, "max"),
    "wide": (1, 64, (3, 43), (11, 14), 1, "subsample"),
    "many_keys": (3, 17, (5, 5), (151, 3), 1, "max", -1.5),
    "deep": (1, 300, (3, 43), (9, 10), 2, "max"),
}

TILES: dict[str, Shape] = {
    "tiles": (2, 40, (9, 15), (26, 27), 2, "max"),
    "many_queries": (1, 8, (35, 61), (2, 3), 1, "max"),
    "many_queries_deep": (1, 520, (20, 16), (6, 6), 2, "max"),
    "nan": (2, 24, (4, 5), (9, 11), 2, "max", None, some_nan),
    "nan_of_others": (2, 24, (4, 5), (9, 11), 3, "subsample", 0.0),
    "negative": (1, 16, (3, 43), (8, 9), 1, "max", -2.0),
}

VECTORS: dict[str, Shape] = {"vectors": (2, 16, (4, 8), (4, 16), 2, "max")}

SAMPLES = OperatorSamples(
    build=build,
    shapes=SHAPES,
    tiles=TILES,
    vectors=VECTORS,
    resized=lambda size, key_size: (2, 6, size, key_size, 2, "max"),
    several_blocks="wide",
)
