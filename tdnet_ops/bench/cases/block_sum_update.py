"""block_sum_update: Sec. 3.1 in a stream, one block of m new.

Operations: the convolution of the new block, 2 H' W' C_out k^2 C_i, and m additions an output
number. Every form updates only the new block: what the stream saves over concatenating all blocks
is not counted in our favour.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tdnet_ops.bench.case import (
    Case,
    Form,
    Graph,
    Inputs,
    Node,
    Problem,
    Setting,
    product_operations,
    total_bytes,
)

INDEX = 1


def published(
    partials: Sequence[Tensor], x: Tensor, weight: Tensor, bias: Tensor, padding: int
) -> tuple[Tensor, Tensor]:
    """A convolution of the new block, then sums."""
    partial = F.conv2d(x, weight, padding=padding)
    total = bias[:, None, None] + partial
    for i, stored in enumerate(partials):
        if i != INDEX:
            total = total + stored
    return partial, F.relu(total)


def _graph(
    partials: Sequence[Tensor], x: Tensor, weight: Tensor, bias: Tensor, padding: int
) -> Graph:
    stored = {f"partial{i}": p.contiguous() for i, p in enumerate(partials) if i != INDEX}
    partial = torch.empty(partials[0].shape, dtype=x.dtype)
    total = torch.empty(partials[0].shape, dtype=x.dtype)
    return Graph(
        inputs={"x": x.contiguous(), **stored},
        constants={"weight": weight.contiguous(), "bias": bias[None, :, None, None]},
        nodes=(
            Node("Conv", ("x", "weight"), "partial", {"pads": [padding] * 4}),
            Node("Sum", ("partial", *stored, "bias"), "sum"),
            Node("Relu", ("sum",), "total"),
        ),
        outputs={"partial": partial, "total": total},
        result=(partial, total),
    )


def _build(
    setting: Setting,
    blocks: int,
    channels: int,
    out_channels: int,
    kernel: int,
    size: tuple[int, int],
) -> Problem:
    inputs = Inputs(setting)
    partials = [inputs.feature_map(1, out_channels, *size) for _ in range(blocks)]
    x = inputs.feature_map(1, channels, *size)
    weight = inputs.tensor(out_channels, channels, kernel, kernel, scale=channels**-0.5 / kernel)
    bias = inputs.tensor(out_channels)
    padding, pixels = kernel // 2, math.prod(size)
    products = ((pixels, out_channels, channels * kernel**2),)
    last = weight.contiguous(memory_format=torch.channels_last)
    return Problem(
        arguments=(partials, INDEX, x, weight, bias, padding, 1, "relu"),
        operations=product_operations(products) + blocks * pixels * out_channels,
        # blocks - 1 stored partials read, a new one and the sum written.
        compulsory_bytes=total_bytes(x, weight, bias) + (blocks + 1) * total_bytes(partials[0]),
        forms={"published": Form(published, (partials, x, last, bias, padding))},
        graph=functools.partial(_graph, partials, x, weight, bias, padding),
        products=products,
    )


def _case(
    name: str,
    blocks: int,
    channels: int,
    out_channels: int,
    kernel: int,
    size: tuple[int, int],
    on_request: bool = False,
) -> Case:
    shapes = (
        f"block {channels} of {blocks} -> {out_channels} at {size[0]}x{size[1]}, "
        f"{kernel}x{kernel}, activation relu"
    )
    build = functools.partial(
        _build,
        blocks=blocks,
        channels=channels,
        out_channels=out_channels,
        kernel=kernel,
        size=size,
    )
    return Case("block_sum_update", name, shapes, build, on_request)


CASES = (
    _case("td4-psp18-head-769x1537", 4, 128, 128, 3, (97, 193)),
    _case("psp101-reduction-360x480", 4, 1024, 512, 3, (45, 60)),
    _case("tiny", 3, 6, 8, 3, (9, 7), on_request=True),
)
