"""One list of sample inputs for every operator, and what "right" means for each.

The list drives the tests of correctness, gradients, registration, compilation and the sanitizer.
Run as a program, it checks every sample once, without pytest: `python samples.py`.

"Right" is `tdnet_ops.reference` in float64 on the same numbers. The tolerance is tied to the dtype:
twice the error of the reference in the dtype that the operator computes in (float32 for half
precision), a few units in the last place, and, for half precision, one rounding of the result.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import tdnet_ops
from tdnet_ops import reference

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
NAMES = (
    "spatial_pool",
    "pooled_affinity",
    "softmax_propagate",
    "attention_propagate",
    "block_sum_reduce",
    "block_sum_update",
    "upsample_argmax",
)
Calls = dict[str, Callable[..., Any]]

# Where samples live and routes run; set by `use_device`, for pytest's option --device.
DEVICE = torch.device("cpu")
# How many numbers behind a result the GPU kernels may round to half precision: the softmax weights,
# and phi(v) or what was attended before phi.
GPU_ROUNDINGS = {"softmax_propagate": 2, "attention_propagate": 2}


# --- layouts --------------------------------------------------------------------------------------


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
_DENSE = {"contiguous": (0, 1, 2, 3), "channels_last": (0, 2, 3, 1)}
_SPACED: dict[str, tuple[tuple[int, ...], int, int, int]] = {
    f"{dense}_start": (order, 0, 0, 1) for dense, order in _DENSE.items()
}
_SPACED |= {
    f"{dense}_{_DIMENSIONS[dim]}_gap_{gap}": (order, dim, gap, 0)
    for dense, order in _DENSE.items()
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


# --- samples --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """One call: `arguments()` gives its positional arguments, in the order of the schema."""

    operator: str
    name: str
    layout: str
    dtype: torch.dtype
    build: Callable[[Numbers], tuple[Any, ...]] = field(repr=False)

    def __str__(self) -> str:
        return f"{self.operator}-{self.name}-{self.layout}-{str(self.dtype).removeprefix('torch.')}"

    def arguments(self) -> tuple[Any, ...]:
        return on_device(self.build(Numbers(self)))


class Numbers:
    """Makes the tensors of one sample, the same in every process."""

    def __init__(self, sample: Sample) -> None:
        self._layout, self._dtype = sample.layout, sample.dtype
        seed = zlib.crc32(f"{sample.operator} {sample.name}".encode())
        self._generator = torch.Generator().manual_seed(seed)

    def _normal(self, shape: Sequence[int], scale: float) -> Tensor:
        numbers = torch.randn(tuple(shape), generator=self._generator, dtype=torch.float64)
        return (numbers * scale).to(self._dtype)

    def feature_map(self, *shape: int, edit: Callable[[Tensor], None] | None = None) -> Tensor:
        """`edit` changes numbers of the map in place."""
        numbers = self._normal(shape, 1.0)
        if edit is not None:
            edit(numbers)
        return place(numbers, self._layout)

    def make_huge(self, x: Tensor) -> None:
        """Positive numbers up to a quarter of the largest of the dtype."""
        x.copy_((x.abs() + 1) / (x.abs().max() + 1) * torch.finfo(self._dtype).max / 4)

    def other(
        self, *shape: int, scale: float = 1.0, edit: Callable[[Tensor], None] | None = None
    ) -> Tensor:
        numbers = self._normal(shape, scale)
        if edit is not None:
            edit(numbers)
        return place_other(numbers, self._layout)


Logits = Callable[[int, int], Tensor]  # queries and keys -> [queries, keys], added to the logits


def growing(largest: float) -> Logits:
    """From 0 at the first key to `largest` at the last."""
    return lambda queries, keys: torch.linspace(0, largest, keys).expand(queries, keys)


def step(first: int, height: float) -> Logits:
    """`height` from key `first` on, 0 before it."""
    return lambda queries, keys: ((torch.arange(keys) >= first) * height).expand(queries, keys)


def spike(query: int, key: int, height: float) -> Logits:
    """Of one query and key."""

    def logits(queries: int, keys: int) -> Tensor:
        added = torch.zeros(queries, keys)
        added[query, key] = height
        return added

    return logits


def without(*keys: slice) -> Logits:
    """Every other query sees nothing of these keys: -inf."""

    def logits(queries: int, key_count: int) -> Tensor:
        added = torch.zeros(queries, key_count)
        for some in keys:
            added[::2, some] = -torch.inf
        return added

    return logits


def low(queries: int, keys: int) -> Tensor:
    """Far below 0, where the numbers beside the keys stand."""
    return torch.full((queries, keys), -2000.0)


def unseen(keys: slice) -> Logits:
    """No query sees anything of these keys: -inf."""

    def logits(queries: int, key_count: int) -> Tensor:
        added = torch.zeros(queries, key_count)
        added[:, keys] = -torch.inf
        return added

    return logits


def _attention(
    batch: int,
    key_channels: int,
    value_channels: int,
    out_channels: int | None,
    size: tuple[int, int],
    key_size: tuple[int, int],
    extras: str = "",
    scale: float | None = None,
    logits: Logits | None = None,
) -> Callable[[Numbers], tuple[Any, ...]]:
    """`extras`: "r" with a residual, "b" with a bias, "h" with huge values, whose sum overflows.

    `logits` are added, of rank one.
    """
    factor = key_channels**-0.5 if scale is None else scale

    def edit_queries(x: Tensor) -> None:
        if logits is not None:
            x[:, 0] = _rank_one(logits, size, key_size)[0].view(*size)

    def edit_keys(x: Tensor) -> None:
        if logits is not None:
            x[:, 0] = _rank_one(logits, size, key_size)[1].view(*key_size) / factor

    def build(numbers: Numbers) -> tuple[Any, ...]:
        last = value_channels if out_channels is None else out_channels
        return (
            numbers.feature_map(batch, key_channels, *size, edit=edit_queries),
            numbers.feature_map(batch, key_channels, *key_size, edit=edit_keys),
            numbers.feature_map(
                batch, value_channels, *key_size, edit=numbers.make_huge if "h" in extras else None
            ),
            numbers.feature_map(batch, last, *size) if "r" in extras else None,
            None
            if out_channels is None
            else numbers.other(out_channels, value_channels, scale=value_channels**-0.5),
            numbers.other(last) if "b" in extras else None,
            scale,
        )

    return build


def _rank_one(
    logits: Logits, size: tuple[int, int], key_size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """x and y with x_i y_j = logits_ij: x is 1 for queries of the largest row, else 0."""
    whole = logits(size[0] * size[1], key_size[0] * key_size[1])
    row = whole[whole.abs().sum(1).argmax()]
    return (whole == row).all(1).float(), row


_ATTENTION: dict[str, tuple[Any, ...]] = {
    "middle": (2, 6, 7, 5, (5, 6), (3, 4), "rb"),
    "ones": (1, 1, 1, None, (1, 1), (1, 1)),
    "one_key": (2, 64, 129, None, (3, 5), (1, 1), "r"),
    "one_query": (1, 7, 3, 2, (1, 1), (5, 7), "b"),
    "no_batch": (0, 8, 5, 6, (4, 3), (2, 2), "rb"),
    "columns": (1, 2, 3, 4, (47, 1), (1, 49), "rb"),
    "odd_channels": (2, 33, 151, 151, (9, 7), (5, 3), "rb"),
    "wide": (1, 64, 129, 65, (7, 19), (9, 15), "rb"),
    "more_out_channels": (1, 16, 8, 200, (17, 13), (10, 6), "rb"),
    "fewer_out_channels": (1, 5, 65, 3, (17, 13), (4, 6)),
    "deep": (3, 5, 4, None, (2, 3), (129, 3), "", 0.3),
    "many_tiles": (1, 8, 9, None, (25, 20), (3, 3), "b"),
    "many_keys": (1, 4, 5, None, (10, 10), (53, 53)),
}


def _softmax(*shape: Any) -> Callable[[Numbers], tuple[Any, ...]]:
    batch, _, _, _, size, key_size, *rest = shape
    logits = rest[2] if len(rest) == 3 else None

    def build(numbers: Numbers) -> tuple[Any, ...]:
        _, _, v, residual, weight, bias, _ = _attention(*shape[:7])(numbers)
        queries, keys = size[0] * size[1], key_size[0] * key_size[1]

        def edit(affinity: Tensor) -> None:
            if logits is not None:
                affinity += logits(queries, keys)

        affinity = numbers.other(batch, queries, keys, scale=2.0, edit=edit)
        return affinity, v, list(size), residual, weight, bias

    return build


def _affinity(
    batch: int,
    channels: int,
    size: tuple[int, int],
    key_size: tuple[int, int],
    stride: int,
    mode: str,
    scale: float | None = None,
    edit: Callable[[Tensor], None] | None = None,
) -> Callable[[Numbers], tuple[Any, ...]]:
    """`edit` changes the keys."""
    return lambda numbers: (
        numbers.feature_map(batch, channels, *size),
        numbers.feature_map(batch, channels, *key_size, edit=edit),
        stride,
        mode,
        scale,
    )


_AFFINITY: dict[str, tuple[Any, ...]] = {
    "middle": (2, 6, (5, 4), (5, 6), 2, "max"),
    "subsample": (2, 6, (5, 4), (7, 6), 3, "subsample"),
    "ones": (1, 1, (1, 1), (1, 1), 1, "max"),
    "one_key": (2, 64, (3, 5), (4, 3), 5, "max"),
    "one_query": (1, 33, (1, 1), (13, 7), 1, "max", 0.5),
    "no_batch": (0, 3, (4, 5), (4, 5), 2, "max"),
    "wide": (1, 64, (3, 43), (11, 14), 1, "subsample"),
    "many_keys": (3, 17, (5, 5), (151, 3), 1, "max", -1.5),
    "deep": (1, 300, (3, 43), (9, 10), 2, "max"),
}


def _pool(
    batch: int,
    channels: int,
    size: tuple[int, int],
    stride: int,
    mode: str,
    edit: Callable[[Tensor], None] | None = None,
) -> Callable[[Numbers], tuple[Any, ...]]:
    return lambda numbers: (numbers.feature_map(batch, channels, *size, edit=edit), stride, mode)


_POOL: dict[str, tuple[Any, ...]] = {
    "middle": (2, 5, (7, 6), 2, "max"),
    "subsample": (2, 5, (7, 6), 3, "subsample"),
    "ones": (1, 1, (1, 1), 1, "max"),
    "stride_one": (2, 3, (4, 5), 1, "max"),
    "window_over_map": (1, 129, (3, 2), 9, "max"),
    "subsample_over_map": (1, 3, (3, 2), 9, "subsample"),
    "no_batch": (0, 4, (5, 5), 2, "max"),
    "odd_channels": (1, 151, (13, 9), 4, "max"),
    "large_window": (1, 40, (33, 17), 64, "max"),
    "wide_window": (1, 2, (3, 1100), 600, "max"),
}


def _reduce(
    batch: int,
    channels: Sequence[int],
    out_channels: int,
    size: tuple[int, int],
    kernel: int,
    bias: bool,
    padding: int,
    dilation: int,
    activation: str,
) -> Callable[[Numbers], tuple[Any, ...]]:
    scale = (sum(channels) * kernel * kernel) ** -0.5
    return lambda numbers: (
        [numbers.feature_map(batch, c, *size) for c in channels],
        [numbers.other(out_channels, c, kernel, kernel, scale=scale) for c in channels],
        numbers.other(out_channels) if bias else None,
        padding,
        dilation,
        activation,
    )


_BLOCKS: dict[str, tuple[Any, ...]] = {
    "middle": (2, [4, 5], 3, (5, 6), 3, True, 1, 1, "none"),
    "relu": (2, [3, 4, 2], 5, (5, 6), 1, True, 0, 1, "relu"),
    "ones": (1, [1], 1, (1, 1), 1, False, 0, 1, "none"),
    "one_pixel": (2, [7, 1], 9, (1, 1), 3, True, 1, 1, "none"),
    "no_batch": (0, [3, 2], 4, (5, 4), 3, True, 1, 1, "relu"),
    "dilated": (1, [3, 2], 4, (9, 8), 3, True, 2, 2, "relu"),
    "unpadded": (1, [5], 4, (7, 3), 3, False, 0, 1, "none"),
    "overpadded": (1, [2, 3], 6, (4, 5), 1, True, 2, 1, "relu"),
    "padding_over_map": (1, [2], 3, (2, 3), 3, True, 5, 4, "none"),
    "odd_channels": (1, [129, 151], 65, (9, 11), 3, False, 1, 1, "relu"),
    "deep": (1, [300], 17, (5, 13), 1, True, 0, 1, "none"),
    "many_blocks": (1, [3] * 18, 6, (4, 5), 1, True, 0, 1, "relu"),
    "unpadded_dilated": (1, [3], 4, (6, 7), 3, True, 0, 2, "none"),
}


def _update(*shape: Any) -> Callable[[Numbers], tuple[Any, ...]]:
    """As of _reduce; the last block is new unless a tenth number says which."""
    *shape, index = shape if len(shape) == 10 else (*shape, len(shape[1]) - 1)
    batch, channels, out_channels, size, kernel, _, padding, dilation, _ = shape
    shrink = dilation * (kernel - 1) - 2 * padding

    def build(numbers: Numbers) -> tuple[Any, ...]:
        blocks, weights, bias, *options = _reduce(*shape)(numbers)
        partials = [
            numbers.feature_map(batch, out_channels, size[0] - shrink, size[1] - shrink)
            for _ in channels
        ]
        # Never read: the operator must not care what stands there.
        partials[index] = blocks[0].new_full((0,), float("nan"))
        return partials, index, blocks[index], weights[index], bias, *options

    return build


_UPDATES = _BLOCKS | {
    "first_index": (2, [3, 4, 2], 5, (5, 6), 1, True, 0, 1, "relu", 0),
    "middle_index": (1, [3, 4, 2], 5, (5, 6), 3, True, 1, 1, "none", 1),
}


def _labels(
    batch: int,
    classes: int,
    size: tuple[int, int],
    out_size: tuple[int, int],
    align_corners: bool,
    dtype: torch.dtype = torch.uint8,
    highest: int | None = None,
) -> Callable[[Numbers], tuple[Any, ...]]:
    """`highest`: the class that is ahead of all others in half of the columns."""

    def edit(logits: Tensor) -> None:
        if highest is not None:
            logits[:, highest, :, : size[1] // 2] += 100.0

    return lambda numbers: (
        numbers.feature_map(batch, classes, *size, edit=edit),
        list(out_size),
        align_corners,
        dtype,
    )


_LABELS: dict[str, tuple[Any, ...]] = {
    "middle": (2, 5, (4, 6), (11, 17), False),
    "aligned": (2, 19, (5, 3), (33, 47), True),
    "ones": (1, 1, (1, 1), (1, 1), False),
    "from_one_pixel": (1, 19, (1, 1), (7, 5), True),
    "to_one_pixel": (2, 19, (9, 7), (1, 1), False),
    "to_one_pixel_aligned": (2, 19, (9, 7), (1, 1), True),
    "smaller": (1, 7, (23, 31), (5, 4), False),
    "smaller_aligned": (1, 7, (23, 31), (5, 4), True),
    "same": (1, 3, (6, 5), (6, 5), False),
    "no_batch": (0, 3, (4, 4), (8, 8), False),
    "most_bytes": (1, 256, (3, 4), (10, 13), False),
    "more_than_bytes": (1, 257, (3, 4), (10, 13), True, torch.int64),
    "wide": (1, 19, (5, 33), (16, 129), False, torch.int64),
    "far_apart": (1, 3, (70, 200), (17, 9), False),
    "whole_vectors": (1, 19, (5, 9), (33, 64), False),
    "many_patches": (1, 19, (5, 9), (33, 130), True),
    "many_classes": (1, 700, (3, 4), (10, 13), False, torch.int64),
    "last_class": (1, 317, (3, 4), (10, 13), False, torch.int64, 316),
}

_BUILDERS: dict[str, tuple[Callable[..., Any], dict[str, tuple[Any, ...]]]] = {
    "spatial_pool": (_pool, _POOL),
    "pooled_affinity": (_affinity, _AFFINITY),
    "softmax_propagate": (_softmax, _ATTENTION),
    "attention_propagate": (_attention, _ATTENTION),
    "block_sum_reduce": (_reduce, _BLOCKS),
    "block_sum_update": (_update, _UPDATES),
    "upsample_argmax": (_labels, _LABELS),
}


def _samples(operator: str) -> Iterator[Sample]:
    """Every size in both common layouts; the first two sizes in every layout and dtype."""
    builder, shapes = _BUILDERS[operator]
    thorough = list(shapes)[:2]
    for name, shape in shapes.items():
        layouts = LAYOUTS if name in thorough else ("contiguous", "channels_last")
        for layout in layouts:
            for dtype in DTYPES:
                common = layout in ("contiguous", "channels_last")
                if (
                    name in thorough
                    or dtype == torch.float32
                    or (common and dtype != torch.float64)
                ):
                    yield Sample(operator, name, layout, dtype, builder(*shape))


SAMPLES: list[Sample] = [sample for operator in NAMES for sample in _samples(operator)]


# --- samples for the kernels of GPUs --------------------------------------------------------------

# What has its own path in kernels that work by tiles and 16-byte vectors: the emulator and GPUs run
# these besides SAMPLES. Numbers of queries, keys and channels are about multiples of 64 and 128.


def _some_nan(x: Tensor) -> None:
    """In windows of 2 x 2 pixels: of some at the first, of others at the last, of most nowhere."""
    x[:, ::3, ::4, ::4] = torch.nan
    x[:, 1::3, 3::4, 3::4] = torch.nan


_TILES: dict[str, dict[str, tuple[Any, ...]]] = {
    "attention_propagate": {
        # 64 key channels, the tensor cores' own kernel in half precision: slices of 128 or 256.
        "three_tiles": (1, 64, 392, None, (11, 13), (9, 21), "r", None, growing(9.0)),
        "full_tiles": (1, 64, 256, None, (8, 17), (16, 16), "rb", None, growing(30.0)),
        "one_key_more": (2, 64, 264, None, (7, 5), (1, 193), "rb", -0.3, growing(60.0)),
        "falling": (1, 64, 512, 512, (5, 50), (5, 52), "rb", None, growing(-40.0)),
        "most_keys": (1, 64, 200, None, (3, 5), (19, 31), "r", None, growing(70.0)),
        "narrow": (3, 64, 120, None, (13, 23), (10, 32), "rb", None, growing(20.0)),
        "spike": (1, 64, 40, None, (12, 11), (4, 65), "", None, spike(70, 150, 14.0)),
        "spike_below": (1, 64, 40, None, (12, 11), (4, 65), "", None, spike(90, 150, 14.0)),
        "spike_late": (1, 64, 160, None, (12, 11), (4, 65), "", None, spike(9, 258, 200.0)),
        "scale_zero": (1, 64, 72, None, (3, 45), (3, 67), "rb", 0.0),
        "negative": (1, 64, 136, 144, (3, 45), (3, 67), "rb", -0.125, spike(33, 100, 20.0)),
        "huge": (1, 64, 136, None, (3, 45), (3, 67), "hb"),
        "huge_narrow": (1, 64, 24, None, (3, 45), (10, 32), "hb", None, growing(20.0)),
        # Weights grow by less than what moves the maximum, for the sum of all but one tile.
        "huge_later": (1, 64, 24, None, (2, 8), (5, 64), "h", 0.01, step(64, 5.9)),
        "parts_of_two_maps": (2, 64, 24, None, (3, 5), (3, 67), "r", None, growing(9.0)),
        "low": (1, 64, 24, None, (3, 45), (3, 67), "", None, low),
        "unseen": (1, 64, 24, None, (4, 33), (5, 52), "", None, unseen(slice(0, 130))),
        # All other kernels.
        "general_low": (1, 24, 40, None, (3, 45), (3, 67), "", None, low),
        "general_unseen": (1, 5, 24, None, (4, 33), (5, 52), "", None, unseen(slice(0, 130))),
        "general_huge": (1, 24, 136, None, (3, 45), (10, 32), "hb", None, growing(2.0)),
        "tiles": (2, 24, 136, None, (9, 19), (10, 32), "rb", None, growing(20.0)),
        "deep_keys": (1, 150, 24, None, (5, 16), (3, 67), "r", -0.1, growing(15.0)),
        "general_scale_zero": (1, 5, 130, None, (5, 13), (5, 26), "b", 0.0),
        # phi stays after the attention, with a residual and bias of its own.
        "phi_after": (2, 64, 16, 264, (8, 24), (8, 16), "rb"),
    },
    "softmax_propagate": {
        "tiles": (2, 1, 264, None, (9, 19), (10, 32), "rb", None, growing(20.0)),
        "huge": (1, 1, 16, None, (3, 45), (10, 32), "h"),
        "falling": (1, 1, 40, None, (8, 17), (9, 21), "r", None, growing(-40.0)),
        "first_keys_unseen": (1, 1, 16, None, (4, 33), (5, 52), "", None, without(slice(0, 130))),
        "last_keys_unseen": (1, 1, 16, None, (4, 33), (5, 52), "", None, without(slice(60, None))),
        "low": (1, 1, 16, None, (4, 33), (5, 53), "", None, low),
        "nothing_seen": (1, 1, 16, None, (4, 33), (5, 52), "", None, without(slice(None))),
        "one_key_seen": (
            *(1, 1, 16, None, (4, 33), (5, 52), "b", None),
            without(slice(0, 140), slice(141, None)),
        ),
    },
    "pooled_affinity": {
        "tiles": (2, 40, (9, 15), (26, 27), 2, "max"),
        "many_queries": (1, 8, (35, 61), (2, 3), 1, "max"),
        "many_queries_deep": (1, 520, (20, 16), (6, 6), 2, "max"),
        "nan": (2, 24, (4, 5), (9, 11), 2, "max", None, _some_nan),
        "nan_of_others": (2, 24, (4, 5), (9, 11), 3, "subsample", 0.0),
        "negative": (1, 16, (3, 43), (8, 9), 1, "max", -2.0),
    },
    "spatial_pool": {
        "nan": (2, 24, (9, 11), 2, "max", _some_nan),
        "tall": (1, 40, (70, 3), 3, "max"),
    },
    "block_sum_reduce": {
        "tiles": (2, [40, 24], 136, (9, 17), 3, True, 1, 1, "relu"),
        "many_blocks_tiles": (1, [3] * 18, 130, (12, 13), 1, True, 0, 1, "none"),
        "dilated_tiles": (1, [33], 72, (13, 19), 3, True, 3, 3, "none"),
        # Taps move further along one side of the map than the other is long.
        "tall": (1, [8], 24, (29, 3), 3, True, 6, 6, "none"),
        "flat": (1, [8], 24, (3, 29), 3, True, 6, 6, "none"),
    },
    "block_sum_update": {
        "tiles": (2, [16, 8, 24], 136, (9, 17), 3, True, 1, 1, "relu", 1),
        "first_of_tiles": (1, [8, 8], 72, (8, 20), 1, False, 0, 1, "none", 0),
    },
    "upsample_argmax": {
        "last_of_many": (1, 1030, (2, 2), (9, 7), True, torch.int64, 1029),
        "last_of_tile": (1, 315, (3, 4), (10, 13), False, torch.int64, 314),
        "patches": (2, 19, (9, 13), (40, 160), False),
        "patches_wide": (1, 5, (30, 7), (50, 96), True, torch.int64),
        "far_apart_patches": (1, 3, (300, 700), (20, 90), True),
    },
}

# Sizes of multiples of 8, run in every spaced layout.
_VECTORS: dict[str, dict[str, tuple[Any, ...]]] = {
    "attention_propagate": {
        "vectors": (2, 64, 24, None, (4, 8), (2, 8), "rb"),
        "vectors_folded": (2, 64, 24, 16, (4, 8), (2, 8), "r"),
        # Where batches, or rows too, have no stride that tells of a gap.
        "vectors_alone": (1, 64, 24, None, (4, 8), (2, 8), "rb"),
        "vectors_of_a_row": (1, 64, 24, None, (1, 16), (1, 16), "rb"),
        "vectors_general": (2, 24, 16, None, (4, 8), (2, 8), "rb"),
        "vectors_phi_after": (2, 8, 8, 24, (4, 8), (4, 8), "rb"),
    },
    "softmax_propagate": {"vectors": (2, 64, 24, None, (4, 8), (2, 8), "rb")},
    "pooled_affinity": {"vectors": (2, 16, (4, 8), (4, 16), 2, "max")},
    "spatial_pool": {
        "vectors": (2, 16, (4, 16), 2, "max"),
        "vectors_subsample": (2, 16, (4, 16), 2, "subsample"),
    },
    "block_sum_reduce": {
        "vectors": (2, [16, 8], 24, (4, 8), 3, True, 1, 1, "relu"),
        "vectors_pointwise": (2, [16, 8], 8, (4, 8), 1, True, 0, 1, "none"),
    },
    "block_sum_update": {"vectors": (2, [16, 8, 8], 24, (4, 8), 1, True, 0, 1, "relu", 0)},
    "upsample_argmax": {"vectors": (2, 16, (4, 8), (9, 32), False)},
}


def _tile_samples(operator: str) -> Iterator[Sample]:
    builder, _ = _BUILDERS[operator]
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    for name, shape in _TILES[operator].items():
        for layout in _DENSE:
            for dtype in dtypes:
                yield Sample(operator, name, layout, dtype, builder(*shape))
    for name, shape in _VECTORS[operator].items():
        for layout in (*_DENSE, *SPACED_LAYOUTS):
            for dtype in dtypes if layout in _DENSE else dtypes[:2]:
                yield Sample(operator, name, layout, dtype, builder(*shape))


TILE_SAMPLES: list[Sample] = [sample for name in NAMES for sample in _tile_samples(name)]


def select(
    names: Sequence[str] | None = None,
    layouts: Sequence[str] = LAYOUTS + SPACED_LAYOUTS,
    dtypes: Sequence[torch.dtype] = DTYPES,
    operators: Sequence[str] = NAMES,
    among: Sequence[Sample] = SAMPLES,
) -> list[Sample]:
    """The samples with these properties; names None: all."""
    return [
        sample
        for sample in among
        if (names is None or sample.name in names)
        and sample.layout in layouts
        and sample.dtype in dtypes
        and sample.operator in operators
    ]


# --- trees of arguments ---------------------------------------------------------------------------


def convert(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """`value` with `function` applied to every tensor in it."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, (list, tuple)):
        return type(value)(convert(item, function) for item in value)
    return value


def tensors(value: Any) -> list[Tensor]:
    """Every tensor in nested lists and tuples, in order."""
    found: list[Tensor] = []
    convert(value, found.append)
    return found


def moved(x: Tensor, device: torch.device) -> Tensor:
    """A copy on `device` with the strides and offset of `x`; what lies around it in memory too."""
    whole = torch.empty(0, dtype=x.dtype, device=x.device).set_(x.untyped_storage())
    copy = torch.empty(whole.shape, dtype=x.dtype, device=device).copy_(whole)
    return copy.as_strided(x.size(), x.stride(), x.storage_offset())


def on_device(value: Any) -> Any:
    """`value` with copies on DEVICE of the tensors in it, laid out as they are."""
    return convert(value, lambda x: moved(x, DEVICE))


def on_cpu(value: Any) -> Any:
    return convert(value, torch.Tensor.cpu)


def widen(value: Any) -> Any:
    return convert(value, lambda x: x.double() if x.is_floating_point() else x)


# --- what is right --------------------------------------------------------------------------------


def computing_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def assert_near(
    actual: Tensor,
    exact: Tensor,
    plain: Tensor,
    dtype: torch.dtype,
    what: str,
    terms: int = 1,
    roundings: int = 0,
    operand_error: float = 0.0,
) -> None:
    """|actual - exact| <= 2 max|plain - exact| + a few units in the last place + one rounding.

    Args:
        actual: of the dtype under test.
        exact: in float64.
        plain: the same numbers by plain PyTorch in the dtype that the operator computes in.
        terms: of the longest sum behind one number; rounding in another order grows with its root.
        roundings: how many numbers behind a result may have been rounded to half precision on the
            way, one from another (softmax weights, phi(v)); float32 stays strict.
        operand_error: relative, of the operands of products (TF32).
    """
    actual, exact, plain = on_cpu((actual, exact, plain))
    assert actual.dtype == dtype, f"{what}: dtype {actual.dtype}, expected {dtype}"
    assert actual.shape == exact.shape, f"{what}: shape {actual.shape}, expected {exact.shape}"
    if exact.numel() == 0:
        return
    assert torch.equal(actual.isnan(), exact.isnan()), f"{what}: NaN where none is due, or missing"
    actual, exact, plain = (torch.where(exact.isnan(), 0.0, x) for x in (actual, exact, plain))
    largest = max(1.0, exact.abs().max().item())
    allowed = 2 * (plain.double() - exact).abs().max().item()
    allowed += (8 + terms**0.5) * torch.finfo(computing_dtype(dtype)).eps * largest
    allowed += 16 * operand_error * largest
    bound = torch.full_like(exact, allowed)
    if dtype in (torch.float16, torch.bfloat16):
        bound += torch.finfo(dtype).eps * exact.abs() + torch.finfo(dtype).smallest_normal
        bound += roundings * torch.finfo(dtype).eps / 2 * largest
    error = (actual.double() - exact).abs()
    excess = torch.where(error <= bound, 0.0, torch.where(error.isnan(), torch.inf, error / bound))
    worst = int(excess.argmax())
    place = [int(i) for i in torch.unravel_index(torch.tensor(worst), exact.shape)]
    assert excess.flatten()[worst] == 0, (
        f"{what}: worst at {place}: got {actual[tuple(place)].item()!r}, expected "
        f"{exact[tuple(place)].item()!r}, allowed difference {bound[tuple(place)].item():.3g}"
    )


def assert_labels(labels: Tensor, arguments: Sequence[Any], what: str) -> None:
    """Labels may differ from the arg max only where the best classes lie within rounding."""
    logits, size, align_corners, dtype = on_cpu(arguments)
    labels = labels.cpu()
    assert labels.dtype == dtype, f"{what}: dtype {labels.dtype}, expected {dtype}"
    assert list(labels.shape) == [logits.shape[0], *size], f"{what}: shape {labels.shape}"
    exact = F.interpolate(
        logits.double(), tuple(size), mode="bilinear", align_corners=align_corners
    )
    if labels.numel() == 0:
        return
    # Positions are computed in float32: their error grows with the extent of the map.
    pixels = 8 + max(logits.shape[2:])
    rounding = 2 * pixels * torch.finfo(computing_dtype(logits.dtype)).eps * exact.abs().max()
    best = exact.max(1).values
    chosen = exact.gather(1, labels.long()[:, None])[:, 0]
    wrong = (best - chosen > rounding).nonzero()
    assert len(wrong) == 0, f"{what}: not the best class at (batch, y, x) {wrong[:4].tolist()}"
    if logits.stride(1) == 0:
        return  # All classes are equal but for rounding.
    clear = exact.topk(min(2, exact.shape[1]), 1).values
    decided = (clear[:, 0] - clear[:, -1] > rounding).float().mean()
    assert exact.shape[1] == 1 or decided > 0.9, f"{what}: the sample decides too little: {decided}"


def expected_channels_last(sample: Sample, arguments: Sequence[Any]) -> bool:
    """The layout rule: as the channels of the operator's first map."""
    if sample.operator == "softmax_propagate":
        first = arguments[1] if arguments[3] is None else arguments[3]
    elif sample.operator == "block_sum_update":
        first = arguments[2]
    else:
        first = tensors(arguments)[0]
    return bool(first.stride(1) == 1)


def longest_sum(sample: Sample, arguments: Sequence[Any]) -> int:
    if sample.operator == "block_sum_reduce":
        return sum(weight[0].numel() for weight in arguments[1])
    if sample.operator == "block_sum_update":
        return arguments[3][0].numel()
    if sample.operator in ("softmax_propagate", "attention_propagate"):
        return max(arguments[1].shape[1], arguments[1].shape[2:].numel())
    return arguments[0].shape[1]


def check(
    sample: Sample,
    call: Callable[..., Any],
    roundings: int | None = None,
    operand_error: float = 0.0,
) -> None:
    """Calls `call` with the sample and compares with the definition, computed on the CPU.

    Args:
        roundings: as of assert_near, for kernels that multiply in half precision; None: those of
            DEVICE.
        operand_error: as of assert_near.

    Raises:
        AssertionError: it is wrong; the text names the worst coordinate.
    """
    arguments = sample.arguments()
    before = on_cpu([x.clone() for x in tensors(arguments)])
    actual = call(*arguments)
    assert all(x.device.type == DEVICE.type for x in tensors([actual])), f"{sample}: another device"
    check_result(sample, arguments, actual, roundings, operand_error)
    for old, x in zip(before, on_cpu(tensors(arguments)), strict=True):
        torch.testing.assert_close(x, old, rtol=0, atol=0, equal_nan=True)


def check_result(
    sample: Sample,
    arguments: tuple[Any, ...],
    actual: Any,
    roundings: int | None = None,
    operand_error: float = 0.0,
) -> None:
    """Compares the result of a call with the definition; see `check`."""
    if roundings is None:
        roundings = 0 if DEVICE.type == "cpu" else GPU_ROUNDINGS.get(sample.operator, 0)
    if sample.operator == "upsample_argmax":
        assert_labels(actual, arguments, str(sample))
        return
    define = getattr(reference, sample.operator)
    home = on_cpu(arguments)
    exact = define(*widen(home))
    computing = computing_dtype(sample.dtype)
    plain = define(*convert(home, lambda x: x.to(computing)))
    for part, (out, right, low) in enumerate(
        zip(tensors([actual]), tensors([exact]), tensors([plain]), strict=True)
    ):
        what = f"{sample} result {part}"
        if sample.operator == "spatial_pool":
            torch.testing.assert_close(out.cpu().double(), right, rtol=0, atol=0, equal_nan=True)
        terms = longest_sum(sample, arguments)
        assert_near(out, right, low, sample.dtype, what, terms, roundings, operand_error)
        if out.dim() == 4 and expected_channels_last(sample, arguments):
            assert out.is_contiguous(memory_format=torch.channels_last), f"{what}: {out.stride()}"
        else:
            assert out.is_contiguous(), f"{what}: {out.stride()}"


def _there_and_back(call: Callable[..., Any]) -> Callable[..., Any]:
    """`call` on DEVICE also for tensors of the CPU, whose results come back to it."""
    if DEVICE.type == "cpu":
        return call

    def carried(*arguments: Any, **named: Any) -> Any:
        at_home = [x for x in tensors((*arguments, *named.values())) if x.device.type == "cpu"]
        if not at_home:
            return call(*arguments, **named)
        there = convert([arguments, list(named.values())], _carried)
        out = call(*there[0], **dict(zip(named, there[1], strict=True)))
        return on_cpu(out)

    return carried


def _carried(x: Tensor) -> Tensor:
    """As `moved`, but differentiable where a gradient is asked for."""
    if x.device.type != "cpu":
        return x
    return x.to(DEVICE) if x.requires_grad else moved(x, DEVICE)


def public(name: str) -> Callable[..., Any]:
    return _there_and_back(getattr(tdnet_ops, name))


def compiled(name: str) -> Callable[..., Any]:
    return _there_and_back(getattr(torch.ops.tdnet, name))


def triton(name: str) -> Callable[..., Any]:
    return _there_and_back(getattr(torch.ops.tdnet_triton, name))


def plain_python(name: str) -> Callable[..., Any]:
    return _there_and_back(getattr(torch.ops.tdnet_reference, name))


ROUTES = {
    "tdnet_ops": public,
    "torch.ops.tdnet": compiled,
    "torch.ops.tdnet_reference": plain_python,
}


def use_device(device: torch.device) -> None:
    """Makes samples and runs routes there from now on; GPUs have the route of Triton too."""
    global DEVICE
    DEVICE = device
    if device.type != "cpu":
        ROUTES["torch.ops.tdnet_triton"] = triton


def load(path: Path) -> ModuleType:
    """A test file as a module of its own."""
    spec = importlib.util.spec_from_file_location(f"loaded_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def tests_by_route(path: Path, routes: dict[str, Callable[[str], Any]]) -> dict[str, Any]:
    """The tests of a file that take a route, with these routes instead of ROUTES."""
    global ROUTES
    usual, ROUTES = ROUTES, routes
    try:
        module = load(path)
    finally:
        ROUTES = usual
    return {
        name: test
        for name, test in vars(module).items()
        if name.startswith("test_") and "route" in inspect.signature(test).parameters
    }


def main() -> int:
    wanted = os.environ.get("TDNET_CPU_ISA")
    in_use = tdnet_ops.build_info()["cpu"]["in_use"]
    if wanted not in (None, in_use):
        print(f"TDNET_CPU_ISA={wanted} asked, {in_use} in use")
        return 2
    failures = 0
    for sample in SAMPLES:
        try:
            check(sample, compiled(sample.operator))
        except Exception as error:
            failures += 1
            print(f"{sample}: {type(error).__name__}: {error}")
    print(f"{len(SAMPLES)} samples on {in_use}, {failures} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
