"""Pooling of keys and values, for attention_propagate."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from tdnet_ops import checks
from tdnet_ops.operators.spatial_pool import spatial_pool

POOLING_MODES = (*checks.MODES, "floor_max", "average")


def pool(x: Tensor, stride: int, mode: str = "max") -> Tensor:
    """Pools windows of stride x stride, as spatial_pool or as PyTorch's own pooling does.

    The latter drops the windows that the border cuts; of a map whose sides the stride divides,
    "max" and "floor_max" are the same.

    Args:
        x: [B, C, H, W].
        stride: n >= 1, the window's side and step.
        mode: "max" or "subsample" (ceil mode, `tdnet_ops.spatial_pool`); "floor_max"
            (`torch.nn.MaxPool2d(n)`) or "average" (`torch.nn.AvgPool2d(n)`).

    Returns:
        [B, C, ceil(H/n), ceil(W/n)], of the last two modes [B, C, floor(H/n), floor(W/n)];
        differentiable.

    Raises:
        TypeError, ValueError: a bad argument, or a map that gives no pixel.
    """
    stride = checks.integer("stride", stride)
    checks.check_positive("stride", stride)
    checks.check_choice("mode", mode, POOLING_MODES)
    if mode in checks.MODES:
        return spatial_pool(x, stride, mode)
    height, width = checks.check_feature_map("x", x).shape[2:]
    if height < stride or width < stride:
        raise ValueError(f"x: expected at least {stride} x {stride} pixels, got {height} x {width}")
    return F.avg_pool2d(x, stride) if mode == "average" else F.max_pool2d(x, stride)
