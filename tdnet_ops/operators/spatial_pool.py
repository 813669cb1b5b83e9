"""spatial_pool, gamma_n of Eq. 3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tdnet_ops import checks
from tdnet_ops.layouts import empty_map
from tdnet_ops.operators.operator import Operator, call


def spatial_pool(
    x: Tensor, stride: int, mode: str = "max", *, backend: str | None = None
) -> Tensor:
    """gamma_n of Eq. 3: pools every n x n window, n = stride, ceil mode.

    Args:
        x: [B, C, H, W].
        stride: n >= 1, the window's side and step.
        mode: "max", the maximum of the window (NaN if it holds one), or "subsample", its top-left
            pixel.

    Returns:
        [B, C, ceil(H/n), ceil(W/n)], differentiable in x.
    """
    stride = checks.integer("stride", stride)
    checks.string("mode", mode)
    return call(_OPERATOR, backend, ("x", x), (x, stride, mode))


def check_spatial_pool(x: Tensor, stride: int, mode: str) -> list[int]:
    checks.check_feature_map("x", x)
    checks.check_has_pixels("x", x)
    checks.check_pooling(stride, mode)
    return [x.shape[0], x.shape[1], *checks.pooled_size(x, stride)]


def _save(ctx: Any, a: Any, output: Tensor) -> None:
    ctx.stride, ctx.mode = a.stride, a.mode
    ctx.save_for_backward(a.x)


def _gradient(ops: Any, ctx: Any, grad: Tensor) -> dict[str, Any]:
    (x,) = ctx.saved_tensors
    return {"x": unpool(grad, x, ctx.stride, ctx.mode)}


def unpool(grad: Tensor, x: Tensor, stride: int, mode: str) -> Tensor:
    """The gradient of x from that of its pooled map."""
    if mode == "subsample":
        return _spread(grad, x.shape, stride)
    window, none = [stride, stride], [0, 0]
    _, indices = torch.ops.aten.max_pool2d_with_indices(x, window, window, none, [1, 1], True)
    return torch.ops.aten.max_pool2d_with_indices_backward(
        grad, x, window, window, none, [1, 1], True, indices
    )


def _spread(grad: Tensor, shape: Sequence[int], stride: int) -> Tensor:
    """Puts each pixel at the top-left corner of its window, zeros elsewhere."""
    rows = torch.slice_scatter(
        grad.new_zeros(grad.shape[0], grad.shape[1], shape[2], grad.shape[3]),
        grad,
        2,
        0,
        None,
        stride,
    )
    return torch.slice_scatter(grad.new_zeros(shape), rows, 3, 0, None, stride)


_OPERATOR = Operator(
    "spatial_pool",
    check_spatial_pool,
    empty=lambda a, shape: empty_map(a.x, shape),
    per_sample=("x",),
    save=_save,
    gradient=_gradient,
    autocast=False,
)
OPERATORS = (_OPERATOR,)
