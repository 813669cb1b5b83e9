"""Argument checks shared by the fake kernels and the Python backends.

csrc/checks.h is their twin in C++.

Each error names the argument, what came and what was expected. A wrong kind or dtype is a
TypeError, a wrong shape or value is a ValueError.
"""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

MODES = ("max", "subsample")
ACTIVATIONS = ("none", "relu")
# Of a stride, a padding or a dilation, in pixels; torch's own operators take no more.
MOST_PIXELS = 2**31 - 1
LABEL_DTYPES = (torch.uint8, torch.int64)


FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def _shape(x: Tensor) -> list[int]:
    return list(x.shape)


def tensor(name: str, x: object, rank: int) -> Tensor:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(x).__name__}")
    if x.layout != torch.strided:
        raise TypeError(f"{name}: expected a dense (strided) tensor, got layout {x.layout}")
    if x.is_nested:
        raise TypeError(f"{name}: expected a dense (strided) tensor, got a nested one")
    if x.dtype not in FLOATS:
        raise TypeError(f"{name}: expected float32, float64, float16 or bfloat16, got {x.dtype}")
    if x.dim() != rank:
        raise ValueError(f"{name}: expected {rank} dimensions, got shape {_shape(x)}")
    return x


def tensor_list(name: str, x: object) -> None:
    if not isinstance(x, (list, tuple)):
        raise TypeError(f"{name}: expected a list of tensors, got {type(x).__name__}")
    for i, item in enumerate(x):
        if not isinstance(item, Tensor):
            raise TypeError(f"{name}[{i}]: expected a tensor, got {type(item).__name__}")


def feature_map(name: str, x: object) -> Tensor:
    """[B, C, H, W] with at least one channel."""
    checked = tensor(name, x, 4)
    if checked.shape[1] == 0:
        raise ValueError(f"{name}: expected at least one channel, got shape {_shape(checked)}")
    return checked


def matches(name: str, x: Tensor, like_name: str, like: Tensor) -> None:
    """Same dtype and device."""
    if x.dtype != like.dtype:
        raise TypeError(f"{name}: expected {like.dtype} as {like_name}, got {x.dtype}")
    if x.device != like.device:
        raise ValueError(f"{name}: expected device {like.device} as {like_name}, got {x.device}")


def extent(name: str, x: Tensor, dim: int, expected: int, source: str) -> None:
    if x.shape[dim] != expected:
        raise ValueError(
            f"{name}: expected size {expected} ({source}) in dimension {dim}, got shape {_shape(x)}"
        )


def _what(value: object) -> str:
    return f"a tensor of {value.dtype}" if isinstance(value, Tensor) else repr(value)


# The dispatcher takes True for 1 and cuts a tensor down to a number, its gradient and its fraction
# lost; public functions look first.


def integer(name: str, value: Any) -> Any:
    """Returns an int of 64 bits or a torch.SymInt."""
    if isinstance(value, torch.SymInt):
        return value
    if type(value) is int:
        if not -(2**63) <= value < 2**63:
            raise ValueError(f"{name}: expected an integer of 64 bits, got {value}")
        return value
    if isinstance(value, Tensor) and torch.jit.is_tracing():
        # A size of a map is a tensor there; the trace keeps its number, and torch warns.
        return int(value)
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return integer(name, int(value))
    raise TypeError(f"{name}: expected an integer, got {_what(value)}")


def optional_number(name: str, value: Any) -> Any:
    """Returns a float, a symbolic number, or None."""
    if value is None or type(value) is float or isinstance(value, (torch.SymFloat, torch.SymInt)):
        return value
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ValueError(f"{name}: expected a number that fits a float, got {value}") from None
    hint = "; multiply q by it" if isinstance(value, Tensor) else ""
    raise TypeError(f"{name}: expected a number or None, got {_what(value)}{hint}")


def string(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected a string, got {_what(value)}")


def boolean(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {_what(value)}")


def two_integers(name: str, value: Any) -> list[int]:
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{name}: expected (height, width), got {_what(value)}")
    if len(value) != 2:
        raise ValueError(f"{name}: expected (height, width), got {tuple(value)}")
    return [integer(name, value[0]), integer(name, value[1])]


def label_dtype(name: str, value: object) -> None:
    if not isinstance(value, torch.dtype):
        raise TypeError(f"{name}: expected torch.uint8 or torch.int64, got {_what(value)}")


def positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name}: expected at least 1, got {value}")


def at_most_pixels(name: str, value: int) -> None:
    if value > MOST_PIXELS:
        raise ValueError(f"{name}: expected at most {MOST_PIXELS}, got {value}")


def choice(name: str, value: object, allowed: Sequence[object]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {list(allowed)}, got {value!r}")


def output_size(size: Sequence[int]) -> None:
    if len(size) != 2:
        raise ValueError(f"size: expected (height, width), got {tuple(size)}")
    for value in size:
        positive("size", value)


def has_pixels(name: str, x: Tensor) -> None:
    if x.shape[2] == 0 or x.shape[3] == 0:
        raise ValueError(f"{name}: expected at least one pixel, got shape {_shape(x)}")


def spatial_pool(x: Tensor, stride: int, mode: str) -> None:
    feature_map("x", x)
    has_pixels("x", x)
    positive("stride", stride)
    at_most_pixels("stride", stride)
    choice("mode", mode, MODES)


def pooled_affinity(q: Tensor, k: Tensor, stride: int, mode: str) -> None:
    feature_map("q", q)
    feature_map("k", k)
    matches("k", k, "q", q)
    extent("k", k, 0, q.shape[0], "batch of q")
    extent("k", k, 1, q.shape[1], "channels of q")
    has_pixels("k", k)
    positive("stride", stride)
    at_most_pixels("stride", stride)
    choice("mode", mode, MODES)


def _projection(
    like_name: str,
    like: Tensor,
    value_channels: int,
    size: Sequence[int],
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
) -> None:
    out_channels = value_channels
    if weight is not None:
        tensor("weight", weight, 2)
        matches("weight", weight, like_name, like)
        extent("weight", weight, 1, value_channels, "channels of v")
        out_channels = weight.shape[0]
        if out_channels == 0:
            raise ValueError(
                f"weight: expected at least one output channel, got shape {_shape(weight)}"
            )
    if bias is not None:
        tensor("bias", bias, 1)
        matches("bias", bias, like_name, like)
        extent("bias", bias, 0, out_channels, "output channels")
    if residual is not None:
        feature_map("residual", residual)
        matches("residual", residual, like_name, like)
        extent("residual", residual, 0, like.shape[0], f"batch of {like_name}")
        extent("residual", residual, 1, out_channels, "output channels")
        extent("residual", residual, 2, size[0], "output height")
        extent("residual", residual, 3, size[1], "output width")


def softmax_propagate(
    affinity: Tensor,
    v: Tensor,
    size: Sequence[int],
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
) -> None:
    tensor("affinity", affinity, 3)
    feature_map("v", v)
    matches("v", v, "affinity", affinity)
    has_pixels("v", v)
    extent("v", v, 0, affinity.shape[0], "batch of affinity")
    extent("affinity", affinity, 2, v.shape[2] * v.shape[3], "keys: pixels of v")
    output_size(size)
    if size[0] * size[1] != affinity.shape[1]:
        raise ValueError(
            f"size: expected height x width = {affinity.shape[1]}, the queries of affinity, "
            f"got {tuple(size)}"
        )
    _projection("affinity", affinity, v.shape[1], size, residual, weight, bias)


def attention_propagate(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
) -> None:
    pooled_affinity(q, k, 1, "max")
    feature_map("v", v)
    matches("v", v, "q", q)
    extent("v", v, 0, q.shape[0], "batch of q")
    extent("v", v, 2, k.shape[2], "height of k")
    extent("v", v, 3, k.shape[3], "width of k")
    _projection("q", q, v.shape[1], q.shape[2:], residual, weight, bias)


def _convolution(
    x_name: str, x: Tensor, weight_name: str, weight: Tensor, padding: int, dilation: int
) -> None:
    feature_map(x_name, x)
    has_pixels(x_name, x)
    tensor(weight_name, weight, 4)
    matches(weight_name, weight, x_name, x)
    if tuple(weight.shape[2:]) not in ((1, 1), (3, 3)):
        raise ValueError(f"{weight_name}: expected a 1x1 or 3x3 kernel, got shape {_shape(weight)}")
    extent(weight_name, weight, 1, x.shape[1], f"channels of {x_name}")
    if weight.shape[0] == 0:
        raise ValueError(
            f"{weight_name}: expected at least one output channel, got shape {_shape(weight)}"
        )
    positive("dilation", dilation)
    at_most_pixels("dilation", dilation)
    if padding < 0:
        raise ValueError(f"padding: expected at least 0, got {padding}")
    at_most_pixels("padding", padding)
    for extent_name, pixels in (("height", x.shape[2]), ("width", x.shape[3])):
        if pixels + 2 * padding - dilation * (weight.shape[2] - 1) < 1:
            raise ValueError(
                f"{x_name}: {extent_name} {pixels} with padding {padding} is smaller than the "
                f"{weight.shape[2]}x{weight.shape[3]} kernel with dilation {dilation}"
            )


def _block_sum_bias(bias: Tensor | None, like_name: str, like: Tensor, out_channels: int) -> None:
    if bias is not None:
        tensor("bias", bias, 1)
        matches("bias", bias, like_name, like)
        extent("bias", bias, 0, out_channels, "output channels")


def block_sum_reduce(
    blocks: Sequence[Tensor],
    weights: Sequence[Tensor],
    bias: Tensor | None,
    padding: int,
    dilation: int,
    activation: str,
) -> None:
    if len(blocks) == 0:
        raise ValueError("blocks: expected at least one block, got an empty list")
    if len(weights) != len(blocks):
        raise ValueError(f"weights: expected {len(blocks)}, one a block, got {len(weights)}")
    choice("activation", activation, ACTIVATIONS)
    for i, (x, weight) in enumerate(zip(blocks, weights, strict=True)):
        # Before its weight, which would be blamed for it.
        feature_map(f"blocks[{i}]", x)
        matches(f"blocks[{i}]", x, "blocks[0]", blocks[0])
        for dim, what in ((0, "batch"), (2, "height"), (3, "width")):
            extent(f"blocks[{i}]", x, dim, blocks[0].shape[dim], f"{what} of blocks[0]")
        _convolution(f"blocks[{i}]", x, f"weights[{i}]", weight, padding, dilation)
        for dim, what in ((0, "output channels"), (2, "kernel")):
            extent(f"weights[{i}]", weight, dim, weights[0].shape[dim], f"{what} of weights[0]")
    _block_sum_bias(bias, "blocks[0]", blocks[0], weights[0].shape[0])


def block_sum_update(
    partials: Sequence[Tensor],
    index: int,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: int,
    dilation: int,
    activation: str,
) -> None:
    if len(partials) == 0:
        raise ValueError("partials: expected at least one, got an empty list")
    if not 0 <= index < len(partials):
        raise ValueError(
            f"index: expected 0 to {len(partials) - 1}, a place in partials, got {index}"
        )
    choice("activation", activation, ACTIVATIONS)
    _convolution("x", x, "weight", weight, padding, dilation)
    shape = convolved_shape(x, weight, padding, dilation)
    for i, partial in enumerate(partials):
        if i == index:
            continue
        feature_map(f"partials[{i}]", partial)
        matches(f"partials[{i}]", partial, "x", x)
        for dim, what in enumerate(("batch", "channels", "height", "width")):
            extent(f"partials[{i}]", partial, dim, shape[dim], f"{what} of the new partial")
    _block_sum_bias(bias, "x", x, weight.shape[0])


def convolved_shape(x: Tensor, weight: Tensor, padding: int, dilation: int) -> list[int]:
    """[B, C_out, H', W'] of a stride-1 convolution of x [B, C, H, W] by weight [C_out, C, k, k]."""
    shrink = dilation * (weight.shape[2] - 1) - 2 * padding
    return [x.shape[0], weight.shape[0], x.shape[2] - shrink, x.shape[3] - shrink]


def upsample_argmax(logits: Tensor, size: Sequence[int], dtype: torch.dtype | None) -> torch.dtype:
    """Returns the dtype of the labels: uint8 for None."""
    dtype = torch.uint8 if dtype is None else dtype
    feature_map("logits", logits)
    has_pixels("logits", logits)
    output_size(size)
    choice("dtype", dtype, LABEL_DTYPES)
    if dtype == torch.uint8 and logits.shape[1] > 256:
        raise ValueError(
            f"dtype: uint8 holds 256 classes, got logits with {logits.shape[1]}; use torch.int64"
        )
    return dtype
