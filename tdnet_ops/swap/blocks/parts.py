"""What the fused forwards of several blocks share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tdnet_ops import folding
from tdnet_ops.nn import has_hooks
from tdnet_ops.operators import attention_propagate


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    projection: Any,
    residual: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """projection(attention) + residual, in one pass where the projection is a bare matrix.

    Where gradients are wanted and it would not fold into fewer channels, one pass has nothing to
    gain from it.

    Args:
        q, k, v: maps or tokens, as attention_propagate takes them, and its options.
        projection: a module.
        residual: added last.
    """
    if is_bare_matrix(projection) and (not torch.is_grad_enabled() or _folds(projection, options)):
        weight, bias = projection.weight.flatten(1), projection.bias
        return attention_propagate(q, k, v, residual, weight, bias, **options)
    out = projection(attention_propagate(q, k, v, **options))
    return out if residual is None else out + residual


def _folds(projection: Any, options: dict[str, Any]) -> bool:
    out_channels, value_channels = projection.weight.shape[:2]
    return folding.leaves_no_more_channels(options.get("heads", 1), value_channels, out_channels)


def is_bare_matrix(part: Any) -> bool:
    """A linear layer or a 1x1 convolution of which nobody would miss the call."""
    if has_hooks(part) or "forward" in vars(part):
        return False
    if type(part) is nn.Linear:
        return True
    return (
        type(part) is nn.Conv2d
        and part.groups == 1
        and (part.kernel_size, part.stride, part.padding) == ((1, 1), (1, 1), (0, 0))
    )
