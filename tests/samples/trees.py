"""Tensors in nested lists and tuples of arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import samples


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
    return convert(value, lambda x: moved(x, samples.DEVICE))


def on_cpu(value: Any) -> Any:
    return convert(value, torch.Tensor.cpu)


def widen(value: Any) -> Any:
    return convert(value, lambda x: x.double() if x.is_floating_point() else x)
