"""Samples of upsample_argmax."""

from __future__ import annotations

import torch
from torch import Tensor

from samples.sample import Build, OperatorSamples, Shape, Size
from samples.tolerances import assert_labels


def build(
    batch: int,
    classes: int,
    size: Size,
    out_size: Size,
    align_corners: bool,
    dtype: torch.dtype = torch.uint8,
    highest: int | None = None,
) -> Build:
    """`highest`: the class that is ahead of all others in half of the columns."""

    def edit(logits: Tensor) -> None:
        if highest is not None:
            logits[:, highest, :, : size[1] // 2] += 100.0

    return lambda numbers: (
        numbers.feature_map(batch, classes, *size, edit=edit),
        list(out_size),
        align_corners,
        dtype,
    )


SHAPES: dict[str, Shape] = {
    "middle": (2, 5, (4, 6), (11, 17), False),
    "aligned": (2, 19, (5, 3), (33, 47), True),
    "ones": (1, 1, (1, 1), (1, 1), False),
    "from_one_pixel": (1, 19, (1, 1), (7, 5), True),
    "to_one_pixel": (2, 19, (9, 7), (1, 1), False),
    "to_one_pixel_aligned": (2, 19, (9, 7), (1, 1), True),
    "smaller": (1, 7, (23, 31), (5, 4), False),
    "smaller_aligned": (1, 7, (23, 31), (5, 4), True),
    "same": (1, 3, (6, 5), (6, 5), False),
    "no_batch": (0, 3, (4, 4), (8, 8), False),
    "most_bytes": (1, 256, (3, 4), (10, 13), False),
    "more_than_bytes": (1, 257, (3, 4), (10, 13), True, torch.int64),
    "wide": (1, 19, (5, 33), (16, 129), False, torch.int64),
    "far_apart": (1, 3, (70, 200), (17, 9), False),
    "whole_vectors": (1, 19, (5, 9), (33, 64), False),
    "many_patches": (1, 19, (5, 9), (33, 130), True),
    "many_classes": (1, 700, (3, 4), (10, 13), False, torch.int64),
    "last_class": (1, 317, (3, 4), (10, 13), False, torch.int64, 316),
}

TILES: dict[str, Shape] = {
    "last_of_many": (1, 1030, (2, 2), (9, 7), True, torch.int64, 1029),
    "last_of_tile": (1, 315, (3, 4), (10, 13), False, torch.int64, 314),
    "patches": (2, 19, (9, 13), (40, 160), False),
    "patches_wide": (1, 5, (30, 7), (50, 96), True, torch.int64),
    "far_apart_patches": (1, 3, (300, 700), (20, 90), True),
}

VECTORS: dict[str, Shape] = {"vectors": (2, 16, (4, 8), (9, 32), False)}


def upsampled(height: int, width: int) -> Size:
    return 3 * height, 2 * width + 1


SAMPLES = OperatorSamples(
    build=build,
    shapes=SHAPES,
    tiles=TILES,
    vectors=VECTORS,
    resized=lambda size, _: (2, 6, size, upsampled(*size), False),
    several_blocks="wide",
    compare=assert_labels,
    sizes=lambda named: {"size": upsampled(*named["logits"].shape[2:])},
)
