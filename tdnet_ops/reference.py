"""The definition of every operator, in a few lines of plain PyTorch.

Every backend is tested against these functions. They are differentiable by PyTorch itself and
favour clarity over memory: the affinity is materialised here.

Shapes: B batch, C channels, H x W the query map (N = H*W queries), h x w the pooled key map
(M = h*w keys), d_k query/key channels, d_v value channels, d_out output channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tdnet_ops import winograd


def _tokens(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, H*W, C]."""
    return x.flatten(2).transpose(1, 2)


def _split(x: Tensor, heads: int) -> Tensor:
    """[B, heads * C, H, W] -> [B * heads, C, H, W]."""
    return x.unflatten(1, (heads, x.shape[1] // heads)).flatten(0, 1)


def _add_projection(
    tokens: Tensor,
    size: Sequence[int],
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    """phi (a bare 1x1 convolution) and the residual sum of Eq. 4 and 5.

    [B, N, d_v] -> [B, d_out, H, W].
    """
    if weight is not None:
        tokens = tokens @ weight.transpose(0, 1)
    if bias is not None:
        tokens = tokens + bias
    out = tokens.transpose(1, 2).unflatten(2, (size[0], size[1]))
    return out if residual is None else out + residual


def _activate(x: Tensor, activation: str) -> Tensor:
    return F.relu(x) if activation == "relu" else x


def spatial_pool(x: Tensor, stride: int, mode: str = "max") -> Tensor:
    """gamma_n of Eq. 3: [B, C, H, W] -> [B, C, ceil(H/n), ceil(W/n)]."""
    if mode == "subsample":
        return x[:, :, ::stride, ::stride].clone()
    return F.max_pool2d(x, stride, ceil_mode=True)


def pooled_affinity(
    q: Tensor, k: Tensor, stride: int = 1, mode: str = "max", scale: float | None = None
) -> Tensor:
    """The logits of Eq. 1, q gamma_n(k)^T * scale: -> [B, N, M]."""
    scale = 1 / math.sqrt(q.shape[1]) if scale is None else scale
    return (_tokens(q) * scale) @ spatial_pool(k, stride, mode).flatten(2)


def softmax_propagate(
    affinity: Tensor,
    v: Tensor,
    size: Sequence[int],
    residual: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """phi(softmax(affinity) v) + residual of Eq. 4 and 5: -> [B, d_out, H, W]."""
    return _add_projection(affinity.softmax(-1) @ _tokens(v), size, residual, weight, bias)


def attention_propagate(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    residual: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
    heads: int = 1,
) -> Tensor:
    """phi(softmax(q k^T * scale) v) + residual, Eq. 4 and 5: -> [B, d_out, H, W].

    Each head attends with its own channels; phi mixes them.
    """
    return attention_propagate_forward(q, k, v, residual, weight, bias, scale, heads)[0]


def attention_propagate_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    residual: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
    heads: int = 1,
) -> tuple[Tensor, Tensor]:
    """attention_propagate, and the log-sum-exp of each query's logits: [B, heads, H, W]."""
    batch, size = q.shape[0], q.shape[2:]
    affinity = pooled_affinity(_split(q, heads), _split(k, heads), scale=scale)
    attended = affinity.softmax(-1) @ _tokens(_split(v, heads))  # [B * heads, N, d_v]
    attended = attended.unflatten(0, (batch, heads)).transpose(1, 2).flatten(2)
    out = _add_projection(attended, size, residual, weight, bias)
    return out, affinity.logsumexp(-1).view(batch, heads, *size)


def block_sum_reduce(
    blocks: Sequence[Tensor],
    weights: Sequence[Tensor],
    bias: Tensor | None = None,
    padding: int = 0,
    dilation: int = 1,
    activation: str = "none",
) -> Tensor:
    """The dimension reduction of Sec. 3.1, act(sum_i conv_i(x_i) + bias): -> [B, C_out, H', W']."""
    partials = [
        F.conv2d(x, weight, padding=padding, dilation=dilation)
        for x, weight in zip(blocks, weights, strict=True)
    ]
    return _sum_partials(partials, bias, activation)


def block_sum_update(
    partials: Sequence[Tensor],
    index: int,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    padding: int = 0,
    dilation: int = 1,
    activation: str = "none",
) -> tuple[Tensor, Tensor]:
    """Sec. 3.1 in a stream: the new partial of block `index`, and act(sum of partials + bias)."""
    partial = F.conv2d(x, weight, padding=padding, dilation=dilation)
    updated = [partial if i == index else p for i, p in enumerate(partials)]
    return partial, _sum_partials(updated, bias, activation)


def _sum_partials(partials: Sequence[Tensor], bias: Tensor | None, activation: str) -> Tensor:
    """Sums in the order of the list, whichever is new, so that a long stream never drifts."""
    total = partials[0]
    for partial in partials[1:]:
        total = total + partial
    if bias is not None:
        total = total + bias[:, None, None]
    return _activate(total, activation)


def winograd_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    dilation: int = 1,
    activation: str = "none",
) -> Tensor:
    """act(conv(x) + bias + residual), 3x3 kernels as Winograd's F(4x4, 3x3) transforms them.

    -> [B, C_out, H, W].
    """
    sums = winograd.products(weight, winograd.input_tiles(x, dilation))
    out = winograd.result(sums, x.shape[2], x.shape[3], dilation)
    if bias is not None:
        out = out + bias[:, None, None]
    if residual is not None:
        out = out + residual
    return _activate(out, activation)


def upsample_argmax(
    logits: Tensor,
    size: Sequence[int],
    align_corners: bool = False,
    dtype: torch.dtype = torch.uint8,
) -> Tensor:
    """arg max over classes of the bilinearly upsampled logits: [B, K, H, W] -> [B, H', W']."""
    upsampled = F.interpolate(
        logits, (size[0], size[1]), mode="bilinear", align_corners=align_corners
    )
    return upsampled.argmax(1).to(dtype)
