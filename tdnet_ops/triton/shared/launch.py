"""How an operator launches a kernel, and the words that name a shape class."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tdnet_ops.triton.shared.choices import Call, Choices
from tdnet_ops.triton.tuning.table import Configuration, Table


@dataclass
class _Process:
    """What all launches of the process share, as they do Triton's driver."""

    choices: Choices


_process = _Process(Choices(Table.read()))


@contextlib.contextmanager
def choosing_from(choices: Choices) -> Iterator[None]:
    """Inside the block launches, of every thread, take their configurations from `choices`."""
    usual, _process.choices = _process.choices, choices
    try:
        yield
    finally:
        _process.choices = usual


def launch(
    kernel: Any,
    like: Tensor,
    shape_class: str,
    candidates: Sequence[Configuration],
    programs: Callable[[Configuration], int],
    **arguments: Any,
) -> None:
    """Runs `kernel`, a triton.jit function, on the current stream of a device.

    Args:
        like: a tensor of that device.
        shape_class: launches of one class share a configuration.
        candidates: to choose from where the table has none, and to fail over to; the first is the
            one to take where nothing can be timed.
        programs: the size of the grid.
        arguments: all of the kernel's but the constants of the configuration. What the kernel
            writes it does not read: timing runs it many times.

    Raises:
        triton.OutOfResources and other errors of Triton: no candidate fits.
    """
    with current_device(like.device):
        call = Call(kernel, candidates, programs, arguments)
        _process.choices.launch(like.device, shape_class, call)


def current_device(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device."""
    if device.type == "cpu" or device.index == torch.accelerator.current_device_index():
        return contextlib.nullcontext()
    return torch.accelerator.device_index(device.index)


def padded(size: int, most: int) -> int:
    """The power of two that holds `size`, at least 16 (tl.dot takes no less) and at most `most`."""
    return min(max(16, 1 << (size - 1).bit_length()), most)


def cdiv(size: int, tile: int) -> int:
    return -(-size // tile)


def kind(x: Tensor, allow_tf32: bool = False) -> str:
    """What a product of such tensors runs on, the first part of a shape class."""
    if x.dtype != torch.float32:
        return "half"
    return "tf32" if allow_tf32 else "float32"


def strided(*operands: Tensor | None) -> str:
    """The last part of a shape class: "-strided" where channels of a map are not adjacent.

    Such a map is loaded number by number, with an address each in a register: tiles that fit
    otherwise spill.
    """
    adjacent = all(x is None or x.shape[1] == 1 or x.stride(1) == 1 for x in operands)
    return "" if adjacent else "-strided"
