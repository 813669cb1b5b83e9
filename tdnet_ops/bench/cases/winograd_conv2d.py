"""winograd_conv2d: 3x3 convolutions of ResNets whose last stages are dilated, not strided.

Operations: those of Winograd's 36 products, 2 * 36 * C_out * C for each tile of 4x4 pixels, phases
of a dilation counted as long as the longest; transforms are not counted. A direct convolution has
up to four times as many.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from tdnet_ops import winograd
from tdnet_ops.bench.case import (
    Case,
    Form,
    Graph,
    Inputs,
    Node,
    Problem,
    Result,
    Setting,
    as_tuple,
    product_operations,
    relative_error,
    total_bytes,
)


def published(x: Tensor, kernels: Tensor, bias: Tensor, residual: Tensor, dilation: int) -> Tensor:
    """The end of a residual block: a direct convolution, the sum, the activation."""
    out = F.conv2d(x, kernels, bias, padding=dilation, dilation=dilation)
    return F.relu(out + residual)


def _graph(x: Tensor, kernels: Tensor, bias: Tensor, residual: Tensor, dilation: int) -> Graph:
    out = torch.empty_like(residual, memory_format=torch.contiguous_format)
    attributes = {"pads": [dilation] * 4, "dilations": [dilation] * 2}
    return Graph(
        inputs={"x": x.contiguous(), "residual": residual.contiguous()},
        constants={"weight": kernels.contiguous(), "bias": bias},
        nodes=(
            Node("Conv", ("x", "weight", "bias"), "convolved", attributes),
            Node("Add", ("convolved", "residual"), "sum"),
            Node("Relu", ("sum",), "out"),
        ),
        outputs={"out": out},
        result=out,
    )


def _error(result: Result, expected: Result) -> float:
    """Without the gradient of the transformed weight, which a direct convolution does not know."""
    (out, *gradients), (right, *right_gradients) = as_tuple(result), as_tuple(expected)
    others = (out, *gradients[:1], *gradients[2:])
    return relative_error(others, (right, *right_gradients[:1], *right_gradients[2:]))


def _build(
    setting: Setting, channels: int, out_channels: int, size: tuple[int, int], dilation: int
) -> Problem:
    inputs = Inputs(setting)
    x = inputs.feature_map(1, channels, *size)
    kernels = inputs.tensor(out_channels, channels, 3, 3, scale=(9 * channels) ** -0.5)
    bias = inputs.tensor(out_channels)
    residual = inputs.feature_map(1, out_channels, *size)
    weight = winograd.winograd_transform(kernels)
    tiles = [winograd.tiles_along(length, dilation) for length in size]
    products = ((tiles[0] * tiles[1], out_channels, channels),) * winograd.POSITIONS
    peers = (x, kernels.contiguous(memory_format=torch.channels_last), bias, residual, dilation)
    return Problem(
        arguments=(x, weight, bias, residual, dilation, "relu"),
        operations=product_operations(products),
        compulsory_bytes=total_bytes(x, weight, bias, residual, residual),
        forms={"published": Form(published, peers)},
        graph=functools.partial(_graph, *peers),
        products=products,
        error=_error,
    )


def _case(
    name: str,
    channels: int,
    out_channels: int,
    size: tuple[int, int],
    dilation: int,
    on_request: bool = False,
) -> Case:
    shapes = (
        f"x {channels} -> {out_channels} at {size[0]}x{size[1]}, dilation {dilation}, residual, "
        "activation relu"
    )
    build = functools.partial(
        _build, channels=channels, out_channels=out_channels, size=size, dilation=dilation
    )
    return Case("winograd_conv2d", name, shapes, build, on_request)


# Of the paths of td4-psp18, ResNet-18 with an output stride of 8.
CASES = (
    _case("td4-psp18-layer1-769x1537", 64, 64, (193, 385), 1),
    _case("td4-psp18-layer2-769x1537", 128, 128, (97, 193), 1),
    _case("td4-psp18-layer3-769x1537", 256, 256, (97, 193), 2),
    _case("td4-psp18-layer4-769x1537", 512, 512, (97, 193), 4),
    _case("tiny", 6, 8, (9, 7), 2, on_request=True),
)
