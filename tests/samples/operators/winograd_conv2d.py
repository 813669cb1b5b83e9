"""Samples of winograd_conv2d."""

from __future__ import annotations

from torch import Tensor

from samples.sample import Build, OperatorSamples, Shape, Size
from tdnet_ops.winograd import winograd_transform


def _transform(weight: Tensor) -> None:
    """Kernels of normal numbers, transformed, in place of [36, C_out, C] normal numbers."""
    weight.copy_(winograd_transform(weight[:9].permute(1, 2, 0).unflatten(2, (3, 3)).clone()))


def build(
    batch: int,
    channels: int,
    out_channels: int,
    size: Size,
    dilation: int,
    bias: bool,
    residual: bool,
    activation: str,
    of_kernels: bool = True,
) -> Build:
    """`of_kernels`: else the weight is any, and results are up to 1390 times its products."""
    scale = channels**-0.5 / (3 if of_kernels else 400)
    shape = (36, out_channels, channels)
    return lambda numbers: (
        numbers.feature_map(batch, channels, *size),
        numbers.other(*shape, scale=scale, edit=_transform if of_kernels else None),
        numbers.other(out_channels) if bias else None,
        numbers.feature_map(batch, out_channels, *size) if residual else None,
        dilation,
        activation,
    )


SHAPES: dict[str, Shape] = {
    "middle": (2, 5, 3, (7, 6), 2, True, True, "none"),
    "relu": (2, 4, 5, (5, 9), 1, True, True, "relu"),
    "ones": (1, 1, 1, (1, 1), 1, False, False, "none"),
    "one_pixel": (2, 7, 9, (1, 1), 3, True, False, "none"),
    "no_batch": (0, 3, 4, (5, 4), 1, True, True, "relu"),
    "dilated": (1, 3, 4, (11, 13), 3, True, False, "relu"),
    "dilation_over_map": (1, 4, 3, (3, 5), 9, False, True, "none"),
    "any_weight": (1, 3, 4, (6, 11), 2, True, False, "none", False),
    "odd_channels": (1, 129, 65, (9, 11), 2, False, True, "relu"),
    "row": (1, 3, 4, (1, 21), 2, False, False, "none"),
    "column": (1, 3, 4, (19, 1), 1, False, True, "relu"),
}

TILES: dict[str, Shape] = {
    "tiles": (2, 64, 136, (17, 35), 1, True, True, "relu"),
    "dilated_tiles": (1, 40, 72, (33, 41), 4, True, False, "none"),
}

VECTORS: dict[str, Shape] = {
    "vectors": (2, 16, 24, (4, 8), 1, True, True, "relu"),
}

SAMPLES = OperatorSamples(
    build=build,
    shapes=SHAPES,
    tiles=TILES,
    vectors=VECTORS,
    resized=lambda size, _: (2, 6, 5, size, 2, True, True, "relu"),
    several_blocks="odd_channels",
    # Of the 36 positions of a tile and all channels.
    longest_sum=lambda arguments: arguments[1][:, 0].numel(),
)
