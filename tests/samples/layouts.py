"""How the tensors of samples lie in memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def _apart(x: Tensor, layout: str) -> Tensor:
    """A view with the numbers of `x`, surrounded by NaN so that a read beside it shows."""
    batch, channels, height, width = x.shape
    nan = float("nan")
    if layout == "channel_slice":
        return x.new_full((batch, channels + 3, height, width), nan)[:, 1:-2].copy_(x)
    if layout == "channels_last_channel_slice":
        whole = x.new_full((batch, height, width, channels + 3), nan)
        return whole.permute(0, 3, 1, 2)[:, 2:-1].copy_(x)
    if layout == "space_slice":
        return x.new_full((batch, channels, height + 3, width + 2), nan)[:, :, 1:-2, 1:-1].copy_(x)
    if layout == "every_other":
        return x.new_full((batch, channels, 2 * height, 2 * width), nan)[:, :, ::2, 1::2].copy_(x)
    raise ValueError(layout)


# Of maps that are whole but for one stride or the start: the order of dimensions in memory, the
# dimension (of B, C, H, W) whose stride is longer, by how many numbers, and where the map starts.
# A gap of 8 keeps 16-byte vectors aligned, a gap or a start of 1 does not: each is there alone.
_DIMENSIONS = ("batch", "channel", "row", "column")
DENSE = {"contiguous": (0, 1, 2, 3), "channels_last": (0, 2, 3, 1)}
_SPACED: dict[str, tuple[tuple[int, ...], int, int, int]] = {
    f"{dense}_start": (order, 0, 0, 1) for dense, order in DENSE.items()
}
_SPACED |= {
    f"{dense}_{_DIMENSIONS[dim]}_gap_{gap}": (order, dim, gap, 0)
    for dense, order in DENSE.items()
    for dim in order[:-1]
    for gap in (1, 8)
}
SPACED_LAYOUTS = tuple(_SPACED)


def _spaced(x: Tensor, layout: str) -> Tensor:
    """A view with the numbers of `x` and NaN in the gaps."""
    order, longer, gap, start = _SPACED[layout]
    strides, stride = [0] * 4, 1
    for dim in reversed(order):
        strides[dim] = stride + (gap if dim == longer else 0)
        stride = strides[dim] * x.shape[dim]
    storage = x.new_full((start + stride,), float("nan"))
    return storage.as_strided(x.shape, strides, start).copy_(x)


def place(x: Tensor, layout: str) -> Tensor:
    """A map [B, C, H, W] laid out in memory as named; "expanded" ones repeat numbers."""
    if layout in _SPACED:
        return _spaced(x, layout)
    if layout == "contiguous":
        return x.contiguous()
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "batch_innermost":
        return x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
    if layout == "expanded_channels":
        return x[:, :1].expand_as(x)
    if layout == "expanded_space":
        return x[:, :, :1, :1].expand_as(x)
    if layout == "expanded_batch":
        return x[:1].expand_as(x)
    return _apart(x, layout)


LAYOUTS = (
    "contiguous",
    "channels_last",
    "transposed",
    "batch_innermost",
    "channel_slice",
    "channels_last_channel_slice",
    "space_slice",
    "every_other",
    "expanded_channels",
    "expanded_space",
    "expanded_batch",
)


def _as_map(x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """`function` of a weight, a bias (channels) or an affinity (queries are pixels) as a map."""
    if x.dim() == 1:
        return function(x[None, :, None, None])[0, :, 0, 0]
    if x.dim() == 2:
        return function(x[..., None, None])[..., 0, 0]
    if x.dim() == 3:
        return function(x.transpose(1, 2)[..., None])[..., 0].transpose(1, 2)
    return function(x)


def place_other(x: Tensor, layout: str) -> Tensor:
    """The like for tensors that are no maps (weights, bias, affinity)."""
    if layout == "contiguous":
        return x.contiguous()
    if layout in _SPACED:
        return _as_map(x, lambda map_: _spaced(map_, layout))
    if layout.startswith("expanded"):
        return x[..., :1].expand_as(x)
    if layout in ("channels_last", "transposed", "batch_innermost") and x.dim() > 1:
        return x.transpose(0, 1).contiguous().transpose(0, 1)
    spaced = x.new_full((*x.shape[:-1], 2 * x.shape[-1]), float("nan"))[..., ::2]
    return spaced.copy_(x)


def some_nan(x: Tensor) -> None:
    """In windows of 2 x 2 pixels: of some at the first, of others at the last, of most nowhere."""
    x[:, ::3, ::4, ::4] = torch.nan
    x[:, 1::3, 3::4, 3::4] = torch.nan
