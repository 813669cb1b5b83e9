"""phi of Eq. 4, a bare 1x1 convolution: folded into the values, or applied to what was attended.

Rows of a softmax sum to one, so phi(A v) + bias = A (phi(v) + bias).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tdnet_ops import folding
from tdnet_ops.triton.shared import convolve


def _channels_last(like: Tensor, channels: int, size: Sequence[int]) -> Tensor:
    shape = (like.shape[0], channels, *size)
    return torch.empty(
        shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )


def propagate(
    v: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    heads: int,
    out: Tensor,
    allow_tf32: bool,
    attend: Callable[[Tensor, Tensor | None, Tensor], None],
) -> None:
    """out = phi(A v) + bias + residual, where `attend(v, residual, out)` computes A v + residual.

    Args:
        v: [B, d_v, h, w], of all heads, which phi mixes: it is folded for one alone.
        residual: [B, d_out, H, W].
        weight: [d_out, d_v] of phi.
        bias: [d_out].
        out: [B, d_out, H, W], filled in.
    """
    queries, keys = out.shape[2] * out.shape[3], v.shape[2] * v.shape[3]
    if weight is None:
        return attend(v if bias is None else v + bias[:, None, None], residual, out)
    kernel = weight[:, :, None, None]
    if heads == 1 and folding.is_cheaper(queries, keys, v.shape[1], out.shape[1]):
        values = _channels_last(v, out.shape[1], v.shape[2:])
        convolve.sum_convolutions([v], [kernel], total=values, bias=bias, allow_tf32=allow_tf32)
        return attend(values, residual, out)
    attended = _channels_last(v, v.shape[1], out.shape[2:])
    attend(v, None, attended)
    addends = [] if residual is None else [residual]
    convolve.sum_convolutions(
        [attended], [kernel], total=out, addends=addends, bias=bias, allow_tf32=allow_tf32
    )
