"""What the gradients of several operators share, in plain PyTorch for all backends.

Sums have a fixed order, so gradients are deterministic wherever torch's products are. Half
precision is widened to float32 first, except in convolutions on CUDA, where cuDNN adds in float32
by itself.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tdnet_ops.layouts import layout


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """float16 and bfloat16 -> float32; others as they are."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def wide(x: Tensor) -> Tensor:
    """float16 and bfloat16 -> float32; others as they are."""
    dtype = wide_dtype(x.dtype)
    return x if x.dtype == dtype else x.to(dtype)


def without_autocast(device_type: str) -> contextlib.AbstractContextManager[Any]:
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()


def tokens(x: Tensor, heads: int = 1) -> Tensor:
    """[B, heads * C, H, W] -> [B * heads, H*W, C]."""
    if heads > 1:
        x = x.unflatten(1, (heads, x.shape[1] // heads)).flatten(0, 1)
    return x.flatten(2).transpose(1, 2)


def as_map(of_tokens: Tensor, like: Tensor) -> Tensor:
    """[B * heads, N, C] -> a map [B, heads * C, H, W] of the size and dtype of `like`."""
    return of_tokens.transpose(1, 2).reshape(like.shape).to(like.dtype)


def scale_of(q: Tensor, scale: float | None, heads: int = 1) -> float:
    """1 / sqrt(d_k) where none was given."""
    return 1 / math.sqrt(q.shape[1] // heads) if scale is None else scale


def products_in(like: Tensor, allow_tf32: bool) -> contextlib.AbstractContextManager[None]:
    """On CUDA, torch's products in the precision of the forward pass."""
    return _in_precision(torch.backends.cuda.matmul, like, allow_tf32)


def _convolutions_in(like: Tensor, allow_tf32: bool) -> contextlib.AbstractContextManager[None]:
    cudnn: Any = torch.backends.cudnn
    return _in_precision(cudnn.conv, like, allow_tf32)


# The settings are the process's, and autograd has a thread for each device.
_settings = threading.RLock()


@contextlib.contextmanager
def _in_precision(setting: Any, like: Tensor, allow_tf32: bool) -> Iterator[None]:
    """The user's setting may have changed since the forward pass; it comes back at the end.

    Written only where it says something else: one that was written no longer follows
    torch.backends.fp32_precision. Compiled code keeps the one it was compiled with.
    """
    if not like.is_cuda or torch.compiler.is_compiling():
        yield
        return
    with _settings:
        before = setting.fp32_precision
        differs = (before == "tf32") != allow_tf32
        if differs:
            setting.fp32_precision = "tf32" if allow_tf32 else "ieee"
        try:
            yield
        finally:
            if differs:
                setting.fp32_precision = before


def fold(v: Tensor, weight: Tensor | None, heads: int = 1) -> Tensor:
    """phi folded into the values: [B, M, d_out]; of several heads, [B * heads, M, d_v]."""
    values = tokens(wide(v), heads)
    return values if weight is None else values @ wide(weight).transpose(0, 1)


def unfold(grad_values: Tensor, v: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """From the gradient of the folded values to those of v and weight."""
    if weight is None:
        return as_map(grad_values, v), None
    return as_map(grad_values @ wide(weight), v), _of_weight(grad_values, v, weight)


def _of_weight(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """From the gradient [B, N, C_out] of x W^T."""
    # One product: the sum of one a map costs as much again.
    return (grad.flatten(0, 1).mT @ tokens(wide(x)).flatten(0, 1)).to(weight.dtype)


def project(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, allow_tf32: bool
) -> Tensor:
    """A bare 1x1 convolution, weight [C_out, C], and the residual, in the layout of x."""
    pixels, weights = wide(x), wide(weight)
    offsets = None if bias is None else wide(bias)
    with products_in(x, allow_tf32):
        if layout(x) == torch.channels_last:
            out = F.linear(pixels.permute(0, 2, 3, 1), weights, offsets).permute(0, 3, 1, 2)
        else:
            out = (weights @ pixels.flatten(2)).unflatten(2, x.shape[2:])
            if offsets is not None:
                out = _with(out, offsets[:, None, None])
    if residual is not None:
        out = _with(out, wide(residual))
    return out if out.dtype == x.dtype else out.to(x.dtype)


def _with(sum_so_far: Tensor, term: Tensor) -> Tensor:
    """Adds in place: a second buffer of a map costs as much time again.

    Not under torch.func, where the term may have a dimension that the sum has not. Compiled, a sum
    of no numbers would lose its layout.
    """
    if torch._C._are_functorch_transforms_active():
        return sum_so_far + term
    return sum_so_far.add_(term) if sum_so_far.numel() > 0 else sum_so_far


def of_projection(
    grad: Tensor, x: Tensor, weight: Tensor, allow_tf32: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of x, in channels_last, and of weight [C_out, C] of a bare 1x1 convolution."""
    with products_in(x, allow_tf32):
        of_tokens = tokens(wide(grad))
        grad_x = (of_tokens @ wide(weight)).transpose(1, 2).unflatten(2, x.shape[2:])
        return grad_x.to(x.dtype), _of_weight(of_tokens, x, weight)


def of_softmax(weights: Tensor, grad_weights: Tensor) -> Tensor:
    """The gradient of the logits."""
    return weights * (grad_weights - (grad_weights * weights).sum(-1, keepdim=True))


def of_convolution(
    grad: Tensor, x: Tensor, weight: Tensor, padding: int, dilation: int, allow_tf32: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of x and weight of one stride-1 convolution."""
    widen = (lambda value: value.to(x.dtype)) if x.is_cuda else wide
    with _convolutions_in(x, allow_tf32):
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


def of_activation(grad: Tensor, out: Tensor, name: str) -> Tensor:
    """As torch's relu: what comes from above a NaN passes, an infinity above a zero does not."""
    return torch.ops.aten.threshold_backward(grad, out, 0) if name == "relu" else grad


def of_bias(grad: Tensor, like: Tensor | None) -> Tensor | None:
    return None if like is None else wide(grad).sum((0, 2, 3)).to(like.dtype)
