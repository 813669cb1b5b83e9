"""The backward pass of every operator in plain PyTorch, shared by all backends.

Recomputes what it needs from the inputs; `attention_propagate` never holds more of the affinity
than one chunk of queries. Sums have a fixed order, so gradients are deterministic wherever torch's
products are. Half precision is widened to float32 first, except in convolutions on CUDA, where
cuDNN adds in float32 by itself.

On CUDA, float32 products follow `torch.backends.cuda.matmul.fp32_precision` and convolutions
cuDNN's own `torch.backends.cudnn.conv.fp32_precision`, as they stand when the backward pass runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# Logits held at once by the backward pass of attention_propagate: 16 MB of float32.
_CHUNK_LOGITS = 1 << 22


def wide(x: Tensor) -> Tensor:
    """float16 and bfloat16 -> float32; others as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def as_map(tokens: Tensor, like: Tensor) -> Tensor:
    """[B, N, C] -> a map of the size and dtype of `like`."""
    return tokens.transpose(1, 2).reshape(like.shape).to(like.dtype)


def spatial_pool(grad: Tensor, x: Tensor, stride: int, mode: str) -> Tensor:
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


def pooled_affinity(
    grad: Tensor, q: Tensor, k: Tensor, pooled: Tensor, stride: int, mode: str, scale: float | None
) -> tuple[Tensor, Tensor]:
    """`pooled` is gamma_n(k)."""
    scale = 1 / math.sqrt(q.shape[1]) if scale is None else scale
    scaled = wide(grad) * scale
    grad_q = scaled @ _tokens(wide(pooled))
    grad_pooled = scaled.transpose(1, 2) @ _tokens(wide(q))
    return as_map(grad_q, q), spatial_pool(as_map(grad_pooled, pooled), k, stride, mode)


def fold(v: Tensor, weight: Tensor | None) -> Tensor:
    """phi folded into the values: [B, M, d_out]."""
    tokens = _tokens(wide(v))
    return tokens if weight is None else tokens @ wide(weight).transpose(0, 1)


def unfold(grad_values: Tensor, v: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """From the gradient of the folded values to those of v and weight."""
    if weight is None:
        return as_map(grad_values, v), None
    grad_weight = (grad_values.transpose(1, 2) @ _tokens(wide(v))).sum(0)
    return as_map(grad_values @ wide(weight), v), grad_weight.to(weight.dtype)


def _softmax_backward(weights: Tensor, grad_weights: Tensor) -> Tensor:
    return weights * (grad_weights - (grad_weights * weights).sum(-1, keepdim=True))


def softmax_propagate(
    grad: Tensor, affinity: Tensor, v: Tensor, weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of affinity, v and weight."""
    grad_tokens, weights = _tokens(wide(grad)), wide(affinity).softmax(-1)
    grad_weights = grad_tokens @ fold(v, weight).transpose(1, 2)
    grad_values = weights.transpose(1, 2) @ grad_tokens
    grad_affinity = _softmax_backward(weights, grad_weights).to(affinity.dtype)
    return grad_affinity, *unfold(grad_values, v, weight)


def attention_propagate(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    weight: Tensor | None,
    log_sum_exp: Tensor,
    scale: float | None,
    *,
    allow_tf32: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and weight (empty without one), contiguous."""
    scale = 1 / math.sqrt(q.shape[1]) if scale is None else scale
    queries, keys, values = _tokens(wide(q)), _tokens(wide(k)), fold(v, weight)
    grad_tokens = _tokens(wide(grad))
    grad_queries = torch.empty_like(queries)
    grad_keys, grad_values = torch.zeros_like(keys), torch.zeros_like(values)
    chunk = max(1, _CHUNK_LOGITS // max(1, keys.shape[0] * keys.shape[1]))
    for first in range(0, queries.shape[1], chunk):
        query, grad_out = queries[:, first : first + chunk], grad_tokens[:, first : first + chunk]
        weights = (query @ keys.transpose(1, 2) * scale).softmax(-1)
        grad_values += weights.transpose(1, 2) @ grad_out
        grad_logits = _softmax_backward(weights, grad_out @ values.transpose(1, 2)) * scale
        grad_queries[:, first : first + chunk] = grad_logits @ keys
        grad_keys += grad_logits.transpose(1, 2) @ query
    grad_v, grad_weight = unfold(grad_values, v, weight)
    return (
        as_map(grad_queries, q).contiguous(),
        as_map(grad_keys, k).contiguous(),
        grad_v.contiguous(),
        q.new_empty(0) if grad_weight is None else grad_weight.contiguous(),
    )


def convolution(
    grad: Tensor, x: Tensor, weight: Tensor, padding: int, dilation: int
) -> tuple[Tensor, Tensor]:
    """Gradients of x and weight of one stride-1 convolution."""
    widen = (lambda value: value.to(x.dtype)) if x.is_cuda else wide
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        widen(grad),
        widen(x),
        # torch's backward refuses a weight of odd strides.
        widen(weight).contiguous(),
        None,
        [1, 1],
        [padding] * 2,
        [dilation] * 2,
        False,
        [0, 0],
        1,
        [True, True, False],
    )
    return grad_x.to(x.dtype), grad_weight.to(weight.dtype)


def activation(grad: Tensor, out: Tensor, name: str) -> Tensor:
    """As torch's relu: what comes from above a NaN passes, an infinity above a zero does not."""
    return torch.ops.aten.threshold_backward(grad, out, 0) if name == "relu" else grad


def bias(grad: Tensor, like: Tensor | None) -> Tensor | None:
    return None if like is None else wide(grad).sum((0, 2, 3)).to(like.dtype)
