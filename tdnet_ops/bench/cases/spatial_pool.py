"""spatial_pool: gamma of Eq. 3.

Operations: one comparison an input number for mode max; none for subsample, which also needs to
read no more than it writes.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tdnet_ops.bench.case import Case, Form, Graph, Inputs, Node, Problem, Setting, total_bytes

STRIDE = 4


def published(x: Tensor, stride: int, mode: str) -> Tensor:
    """The published code subsamples by a pooling window of one pixel."""
    if mode == "subsample":
        return F.max_pool2d(x, kernel_size=1, stride=stride)
    return F.max_pool2d(x, stride, ceil_mode=True)


def _graph(x: Tensor, stride: int, mode: str, pooled: tuple[int, int]) -> Graph:
    out = torch.empty(*x.shape[:2], *pooled, dtype=x.dtype)
    window = stride if mode == "max" else 1
    attributes = {
        "kernel_shape": [window, window],
        "strides": [stride, stride],
        "ceil_mode": int(mode == "max"),
    }
    return Graph(
        inputs={"x": x.contiguous()},
        constants={},
        nodes=(Node("MaxPool", ("x",), "out", attributes),),
        outputs={"out": out},
        result=out,
    )


def _build(setting: Setting, channels: int, size: tuple[int, int], mode: str) -> Problem:
    x = Inputs(setting).feature_map(1, channels, *size)
    pooled = (-(-size[0] // STRIDE), -(-size[1] // STRIDE))
    out_bytes = channels * math.prod(pooled) * x.element_size()
    return Problem(
        arguments=(x, STRIDE, mode),
        operations=x.numel() if mode == "max" else 0,
        compulsory_bytes=out_bytes + (total_bytes(x) if mode == "max" else out_bytes),
        forms={"published": Form(published, (x, STRIDE, mode))},
        graph=functools.partial(_graph, x, STRIDE, mode, pooled),
    )


def _case(
    name: str, channels: int, size: tuple[int, int], mode: str, on_request: bool = False
) -> Case:
    shapes = f"x {channels}x{size[0]}x{size[1]}, stride {STRIDE}, mode {mode}"
    build = functools.partial(_build, channels=channels, size=size, mode=mode)
    return Case("spatial_pool", name, shapes, build, on_request)


CASES = (
    _case("psp-769x1537-max", 512, (97, 193), "max"),
    _case("psp-769x1537-subsample", 512, (97, 193), "subsample"),
    _case("keys-769x1537-max", 64, (97, 193), "max"),
    _case("bise-1024x2048-max", 128, (128, 256), "max"),
    _case("psp-360x480-max", 512, (45, 60), "max"),
    _case("tiny", 8, (9, 7), "max", on_request=True),
)
