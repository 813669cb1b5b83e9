"""Samples of block_sum_reduce."""

from __future__ import annotations

from collections.abc import Sequence

from samples.sample import Build, OperatorSamples, Shape, Size


def build(
    batch: int,
    channels: Sequence[int],
    out_channels: int,
    size: Size,
    kernel: int,
    bias: bool,
    padding: int,
    dilation: int,
    activation: str,
) -> Build:
    scale = (sum(channels) * kernel * kernel) ** -0.5
    return lambda numbers: (
        [numbers.feature_map(batch, c, *size) for c in channels],
        [numbers.other(out_channels, c, kernel, kernel, scale=scale) for c in channels],
        numbers.other(out_channels) if bias else None,
        padding,
        dilation,
        activation,
    )


SHAPES: dict[str, Shape] = {
    "middle": (2, [4, 5], 3, (5, 6), 3, True, 1, 1, "none"),
    "relu": (2, [3, 4, 2], 5, (5, 6), 1, True, 0, 1, "relu"),
    "ones": (1, [1], 1, (1, 1), 1, False, 0, 1, "none"),
    "one_pixel": (2, [7, 1], 9, (1, 1), 3, True, 1, 1, "none"),
    "no_batch": (0, [3, 2], 4, (5, 4), 3, True, 1, 1, "relu"),
    "dilated": (1, [3, 2], 4, (9, 8), 3, True, 2, 2, "relu"),
    "unpadded": (1, [5], 4, (7, 3), 3, False, 0, 1, "none"),
    "overpadded": (1, [2, 3], 6, (4, 5), 1, True, 2, 1, "relu"),
    "padding_over_map": (1, [2], 3, (2, 3), 3, True, 5, 4, "none"),
    "odd_channels": (1, [129, 151], 65, (9, 11), 3, False, 1, 1, "relu"),
    "deep": (1, [300], 17, (5, 13), 1, True, 0, 1, "none"),
    "many_blocks": (1, [3] * 18, 6, (4, 5), 1, True, 0, 1, "relu"),
    "unpadded_dilated": (1, [3], 4, (6, 7), 3, True, 0, 2, "none"),
}

TILES: dict[str, Shape] = {
    "tiles": (2, [40, 24], 136, (9, 17), 3, True, 1, 1, "relu"),
    "many_blocks_tiles": (1, [3] * 18, 130, (12, 13), 1, True, 0, 1, "none"),
    # Two launches of 16 blocks, the most of one.
    "full_launches": (1, [3] * 32, 6, (4, 5), 1, True, 0, 1, "relu"),
    "dilated_tiles": (1, [33], 72, (13, 19), 3, True, 3, 3, "none"),
    # Taps move further along one side of the map than the other is long.
    "tall": (1, [8], 24, (29, 3), 3, True, 6, 6, "none"),
    "flat": (1, [8], 24, (3, 29), 3, True, 6, 6, "none"),
}

VECTORS: dict[str, Shape] = {
    "vectors": (2, [16, 8], 24, (4, 8), 3, True, 1, 1, "relu"),
    "vectors_pointwise": (2, [16, 8], 8, (4, 8), 1, True, 0, 1, "none"),
}

SAMPLES = OperatorSamples(
    build=build,
    shapes=SHAPES,
    tiles=TILES,
    vectors=VECTORS,
    resized=lambda size, _: (2, [6, 6], 5, size, 3, True, 1, 1, "relu"),
    several_blocks="odd_channels",
    longest_sum=lambda arguments: sum(weight[0].numel() for weight in arguments[1]),
)
