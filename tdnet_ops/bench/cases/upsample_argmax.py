"""upsample_argmax: bilinear upsampling and arg max over the classes, align_corners as published.

Operations: 8 an output pixel and class (four products, three sums, one comparison), although a
kernel may share the vertical half of the interpolation between pixels.
"""

from __future__ import annotations

import functools
import math

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
    Result,
    Setting,
    total_bytes,
)


def _upsample(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(logits, size, mode="bilinear", align_corners=True)


def published(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """The published code takes the index from max, faster on CPUs than argmax."""
    return _upsample(logits, size).max(1)[1]


def argmax(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """What most people write."""
    return _upsample(logits, size).argmax(1)


def _graph(logits: Tensor, size: tuple[int, int]) -> Graph:
    labels = torch.empty(logits.shape[0], *size, dtype=torch.int64)
    resize = {"mode": "linear", "coordinate_transformation_mode": "align_corners"}
    return Graph(
        inputs={"logits": logits.contiguous()},
        constants={"size": torch.tensor([*logits.shape[:2], *size])},
        nodes=(
            Node("Resize", ("logits", "", "", "size"), "upsampled", resize),
            Node("ArgMax", ("upsampled",), "labels", {"axis": 1, "keepdims": 0}),
        ),
        outputs={"labels": labels},
        result=labels,
    )


def label_error(logits: Tensor, size: tuple[int, int], result: Result, expected: Result) -> float:
    """How far a chosen class lies below the best one, of the largest logit: ties may differ."""
    assert isinstance(result, Tensor)
    assert isinstance(expected, Tensor)
    outside = result.shape != expected.shape or result.min() < 0 or result.max() >= logits.shape[1]
    if outside:
        return float("inf")
    upsampled = _upsample(logits.float(), size)
    chosen, best = (upsampled.gather(1, labels.long()[:, None]) for labels in (result, expected))
    return float((best - chosen).abs().max() / logits.abs().max())


def _build(
    setting: Setting, classes: int, source: tuple[int, int], size: tuple[int, int]
) -> Problem:
    logits = Inputs(setting).feature_map(1, classes, *source)
    return Problem(
        arguments=(logits, size, True),
        operations=8 * classes * math.prod(size),
        compulsory_bytes=total_bytes(logits) + math.prod(size),
        forms={
            "published": Form(published, (logits, size)),
            "argmax": Form(argmax, (logits, size)),
        },
        graph=functools.partial(_graph, logits, size),
        error=functools.partial(label_error, logits, size),
    )


def _case(
    name: str,
    classes: int,
    source: tuple[int, int],
    size: tuple[int, int],
    on_request: bool = False,
) -> Case:
    shapes = f"{classes} classes, {source[0]}x{source[1]} -> {size[0]}x{size[1]}, align_corners"
    build = functools.partial(_build, classes=classes, source=source, size=size)
    return Case("upsample_argmax", name, shapes, build, on_request)


CASES = (
    _case("psp-769x1537", 19, (97, 193), (769, 1537)),
    _case("bise-1024x2048", 19, (128, 256), (1024, 2048)),
    _case("psp-360x480", 11, (45, 60), (360, 480)),
    _case("tiny", 5, (9, 7), (20, 30), on_request=True),
)
