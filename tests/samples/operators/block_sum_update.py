"""Samples of block_sum_update."""

from __future__ import annotations

from typing import Any

from samples.operators import block_sum_reduce
from samples.sample import Arguments, Build, Numbers, OperatorSamples, Shape


def build(*shape: Any) -> Build:
    """As of block_sum_reduce; the last block is new unless a tenth number says which."""
    *shape, index = shape if len(shape) == 10 else (*shape, len(shape[1]) - 1)
    batch, channels, out_channels, size, kernel, _, padding, dilation, _ = shape
    shrink = dilation * (kernel - 1) - 2 * padding

    def build(numbers: Numbers) -> Arguments:
        blocks, weights, bias, *options = block_sum_reduce.build(*shape)(numbers)
        partials = [
            numbers.feature_map(batch, out_channels, size[0] - shrink, size[1] - shrink)
            for _ in channels
        ]
        # Never read: the operator must not care what stands there.
        partials[index] = blocks[0].new_full((0,), float("nan"))
        return partials, index, blocks[index], weights[index], bias, *options

    return build


SHAPES = block_sum_reduce.SHAPES | {
    "first_index": (2, [3, 4, 2], 5, (5, 6), 1, True, 0, 1, "relu", 0),
    "middle_index": (1, [3, 4, 2], 5, (5, 6), 3, True, 1, 1, "none", 1),
}

TILES: dict[str, Shape] = {
    "tiles": (2, [16, 8, 24], 136, (9, 17), 3, True, 1, 1, "relu", 1),
    "first_of_tiles": (1, [8, 8], 72, (8, 20), 1, False, 0, 1, "none", 0),
}

VECTORS: dict[str, Shape] = {"vectors": (2, [16, 8, 8], 24, (4, 8), 1, True, 0, 1, "relu", 0)}

SAMPLES = OperatorSamples(
    build=build,
    shapes=SHAPES,
    tiles=TILES,
    vectors=VECTORS,
    resized=block_sum_reduce.SAMPLES.resized,
    several_blocks="odd_channels",
    longest_sum=lambda arguments: arguments[3][0].numel(),
    like=lambda arguments: arguments[2],
)
