"""The layout rule of every operator that returns a map, as tdnet_ops/operators states it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def layout(like: Tensor) -> torch.memory_format:
    return torch.channels_last if like.stride(1) == 1 else torch.contiguous_format


def empty_map(like: Tensor, shape: Sequence[int]) -> Tensor:
    """A map of this shape, and of dtype, device and layout of `like`."""
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout(like))
