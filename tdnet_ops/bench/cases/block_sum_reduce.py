"""block_sum_reduce: the dimension reduction of Sec. 3.1 over channel groups.

Operations: 2 H' W' C_out k^2 sum(C_i), windows at the border counted whole.
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


def published(
    blocks: Sequence[Tensor], weight: Tensor, bias: Tensor, padding: int, activation: str
) -> Tensor:
    """One convolution over the concatenated blocks."""
    out = F.conv2d(torch.cat(list(blocks), 1), weight, bias, padding=padding)
    return F.relu(out) if activation == "relu" else out


def _graph(
    blocks: Sequence[Tensor], weight: Tensor, bias: Tensor, padding: int, activation: str
) -> Graph:
    inputs = {f"x{i}": x.contiguous() for i, x in enumerate(blocks)}
    out = torch.empty(blocks[0].shape[0], weight.shape[0], *blocks[0].shape[2:], dtype=weight.dtype)
    reduced = "reduced" if activation == "relu" else "out"
    nodes = [
        Node("Concat", tuple(inputs), "whole", {"axis": 1}),
        Node("Conv", ("whole", "weight", "bias"), reduced, {"pads": [padding] * 4}),
    ]
    if activation == "relu":
        nodes.append(Node("Relu", (reduced,), "out"))
    return Graph(
        inputs=inputs,
        constants={"weight": weight.contiguous(), "bias": bias},
        nodes=tuple(nodes),
        outputs={"out": out},
        result=out,
    )


def _build(
    setting: Setting,
    channels: tuple[int, ...],
    out_channels: int,
    kernel: int,
    size: tuple[int, int],
    activation: str,
) -> Problem:
    inputs = Inputs(setting)
    blocks = [inputs.feature_map(1, count, *size) for count in channels]
    scale = (sum(channels) * kernel**2) ** -0.5
    weights = [inputs.tensor(out_channels, c, kernel, kernel, scale=scale) for c in channels]
    bias = inputs.tensor(out_channels)
    padding, pixels = kernel // 2, math.prod(size)
    products = tuple((pixels, out_channels, count * kernel**2) for count in channels)
    out_bytes = pixels * out_channels * bias.element_size()
    whole = torch.cat(weights, 1).contiguous(memory_format=torch.channels_last)
    return Problem(
        arguments=(blocks, weights, bias, padding, 1, activation),
        operations=product_operations(products),
        compulsory_bytes=total_bytes(*blocks, *weights, bias) + out_bytes,
        forms={"published": Form(published, (blocks, whole, bias, padding, activation))},
        graph=functools.partial(_graph, blocks, whole, bias, padding, activation),
        products=products,
    )


def _case(
    name: str,
    channels: tuple[int, ...],
    out_channels: int,
    kernel: int,
    size: tuple[int, int],
    activation: str,
    on_request: bool = False,
) -> Case:
    shapes = (
        f"blocks {'+'.join(map(str, channels))} -> {out_channels} at {size[0]}x{size[1]}, "
        f"{kernel}x{kernel}, activation {activation}"
    )
    build = functools.partial(
        _build,
        channels=channels,
        out_channels=out_channels,
        kernel=kernel,
        size=size,
        activation=activation,
    )
    return Case("block_sum_reduce", name, shapes, build, on_request)


# The value map of a path reads the pyramid's five blocks; the head is a 3x3 reduction.
CASES = (
    _case("td4-psp18-value-769x1537", (256, 64, 64, 64, 64), 512, 1, (97, 193), "none"),
    _case("td2-psp50-value-769x1537", (1024, 256, 256, 256, 256), 512, 1, (97, 193), "none"),
    _case("td4-psp18-head-769x1537", (128,) * 4, 128, 3, (97, 193), "relu"),
    _case("psp101-reduction-360x480", (1024,) * 4, 512, 3, (45, 60), "relu"),
    _case("tiny", (6, 5), 8, 3, (9, 7), "relu", on_request=True),
)
