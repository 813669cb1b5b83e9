"""What the checks of operators are made of. csrc/checks.h is the twin in C++, with the same texts.

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

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
LABELS = (torch.uint8, torch.int64)


def _one_of(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


_A_FLOAT = _one_of([str(dtype).removeprefix("torch.") for dtype in FLOATS])
_A_LABEL = _one_of([str(dtype) for dtype in LABELS])


def _shape(x: Tensor) -> list[int]:
    return list(x.shape)


def check_tensor(name: str, x: object, rank: int) -> Tensor:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(x).__name__}")
    if x.layout != torch.strided:
        raise TypeError(f"{name}: expected a dense (strided) tensor, got layout {x.layout}")
    if x.is_nested:
        raise TypeError(f"{name}: expected a dense (strided) tensor, got a nested one")
    if x.dtype not in FLOATS:
        raise TypeError(f"{name}: expected {_A_FLOAT}, got {x.dtype}")
    if x.dim() != rank:
        raise ValueError(f"{name}: expected {rank} dimensions, got shape {_shape(x)}")
    return x


def tensor_list(name: str, x: object) -> None:
    if not isinstance(x, (list, tuple)):
        raise TypeError(f"{name}: expected a list of tensors, got {type(x).__name__}")
    for i, item in enumerate(x):
        if not isinstance(item, Tensor):
            raise TypeError(f"{name}[{i}]: expected a tensor, got {type(item).__name__}")


def check_feature_map(name: str, x: object) -> Tensor:
    """[B, C, H, W] with at least one channel."""
    checked = check_tensor(name, x, 4)
    if checked.shape[1] == 0:
        raise ValueError(f"{name}: expected at least one channel, got shape {_shape(checked)}")
    return checked


def channels_first(name: str, x: Tensor, ranks: Sequence[int] = (3, 4, 5)) -> Tensor:
    """Tokens [B, N, C] -> [B, C, N]; maps and frames as they are."""
    rank = x.dim() if isinstance(x, Tensor) and x.dim() in ranks else 4
    checked = check_tensor(name, x, rank)
    return checked.transpose(1, 2) if rank == 3 else checked


def check_matches(name: str, x: Tensor, like_name: str, like: Tensor) -> None:
    """Same dtype and device."""
    if x.dtype != like.dtype:
        raise TypeError(f"{name}: expected {like.dtype} as {like_name}, got {x.dtype}")
    if x.device != like.device:
        raise ValueError(f"{name}: expected device {like.device} as {like_name}, got {x.device}")


def check_size(name: str, x: Tensor, dim: int, expected: int, source: str) -> None:
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
        raise TypeError(f"{name}: expected {_A_LABEL}, got {_what(value)}")


def check_positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name}: expected at least 1, got {value}")


def check_most_pixels(name: str, value: int) -> None:
    if value > MOST_PIXELS:
        raise ValueError(f"{name}: expected at most {MOST_PIXELS}, got {value}")


def check_choice(name: str, value: object, allowed: Sequence[object]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {list(allowed)}, got {value!r}")


def check_output_size(size: Sequence[int]) -> None:
    if len(size) != 2:
        raise ValueError(f"size: expected (height, width), got {tuple(size)}")
    for value in size:
        check_positive("size", value)


def check_has_pixels(name: str, x: Tensor) -> None:
    if x.shape[2] == 0 or x.shape[3] == 0:
        raise ValueError(f"{name}: expected at least one pixel, got shape {_shape(x)}")


def check_not_empty(name: str, tensors: Sequence[Tensor]) -> None:
    if len(tensors) == 0:
        what = "at least one block" if name == "blocks" else "at least one"
        raise ValueError(f"{name}: expected {what}, got an empty list")


def check_pooling(stride: int, mode: str) -> None:
    check_positive("stride", stride)
    check_most_pixels("stride", stride)
    check_choice("mode", mode, MODES)


def pooled_size(x: Tensor, stride: int) -> tuple[int, int]:
    """(height, width) of x [B, C, H, W] pooled, ceil mode."""
    return -(-x.shape[2] // stride), -(-x.shape[3] // stride)


def check_queries_and_keys(q: Tensor, k: Tensor) -> None:
    check_feature_map("q", q)
    check_feature_map("k", k)
    check_matches("k", k, "q", q)
    check_size("k", k, 0, q.shape[0], "batch of q")
    check_size("k", k, 1, q.shape[1], "channels of q")
    check_has_pixels("k", k)


def check_heads(name: str, x: Tensor, heads: int) -> None:
    if x.shape[1] % heads != 0:
        raise ValueError(f"{name}: expected channels for {heads} heads, got shape {_shape(x)}")


def check_bias(bias: Tensor | None, like_name: str, like: Tensor, out_channels: int) -> None:
    if bias is not None:
        check_tensor("bias", bias, 1)
        check_matches("bias", bias, like_name, like)
        check_size("bias", bias, 0, out_channels, "output channels")


def check_residual(
    residual: Tensor | None, like_name: str, like: Tensor, shape: Sequence[int]
) -> None:
    """What is added to a result [B, C_out, H, W] of this shape."""
    if residual is None:
        return
    check_feature_map("residual", residual)
    check_matches("residual", residual, like_name, like)
    sources = (f"batch of {like_name}", "output channels", "output height", "output width")
    for dim, source in enumerate(sources):
        check_size("residual", residual, dim, shape[dim], source)


def check_projection(
    like_name: str,
    like: Tensor,
    value_channels: int,
    size: Sequence[int],
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
) -> list[int]:
    """phi and the residual of Eq. 4 and 5. Returns [B, d_out, *size]."""
    out_channels = value_channels
    if weight is not None:
        check_tensor("weight", weight, 2)
        check_matches("weight", weight, like_name, like)
        check_size("weight", weight, 1, value_channels, "channels of v")
        out_channels = weight.shape[0]
        check_output_channels("weight", weight)
    check_bias(bias, like_name, like, out_channels)
    shape = [like.shape[0], out_channels, size[0], size[1]]
    check_residual(residual, like_name, like, shape)
    return shape


def check_output_channels(name: str, weight: Tensor, dim: int = 0) -> None:
    if weight.shape[dim] == 0:
        raise ValueError(
            f"{name}: expected at least one output channel, got shape {_shape(weight)}"
        )


def check_convolution(
    x_name: str, x: Tensor, weight_name: str, weight: Tensor, padding: int, dilation: int
) -> list[int]:
    """A stride-1 convolution of x by weight, 1x1 or 3x3. Returns [B, C_out, H', W']."""
    check_feature_map(x_name, x)
    check_has_pixels(x_name, x)
    check_tensor(weight_name, weight, 4)
    check_matches(weight_name, weight, x_name, x)
    if tuple(weight.shape[2:]) not in ((1, 1), (3, 3)):
        raise ValueError(f"{weight_name}: expected a 1x1 or 3x3 kernel, got shape {_shape(weight)}")
    check_size(weight_name, weight, 1, x.shape[1], f"channels of {x_name}")
    check_output_channels(weight_name, weight)
    check_positive("dilation", dilation)
    check_most_pixels("dilation", dilation)
    if padding < 0:
        raise ValueError(f"padding: expected at least 0, got {padding}")
    check_most_pixels("padding", padding)
    shrink = dilation * (weight.shape[2] - 1) - 2 * padding
    height, width = x.shape[2] - shrink, x.shape[3] - shrink
    for name, pixels, result in (("height", x.shape[2], height), ("width", x.shape[3], width)):
        if result < 1:
            raise ValueError(
                f"{x_name}: expected a {name} of at least {shrink + 1} for a "
                f"{weight.shape[2]}x{weight.shape[3]} kernel with padding {padding} and dilation "
                f"{dilation}, got {pixels}"
            )
    return [x.shape[0], weight.shape[0], height, width]


def check_activation(activation: str) -> None:
    check_choice("activation", activation, ACTIVATIONS)
