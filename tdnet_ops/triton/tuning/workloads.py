"""Calls of every shape class of every kernel, at the sizes of TDNet: what tune.py chooses for.

They stand in each operator's file, as its function `workloads`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tdnet_ops.backends import has_kernel
from tdnet_ops.operators import OPERATORS
from tdnet_ops.triton.run import run

# 769 x 1537 at stride 8, and its pooled keys, which are the queries of inner hops too.
_QUERIES, _KEYS = (97, 193), (25, 49)

Arguments = tuple[Any, ...]  # of an operator's schema, all but allow_tf32


class Inputs(NamedTuple):
    """Makes the arguments of calls; tensors of any numbers on a CPU, where nothing runs."""

    dtype: torch.dtype
    allow_tf32: bool
    memory_format: torch.memory_format
    device: torch.device

    def __str__(self) -> str:
        memory_format = str(self.memory_format).removeprefix("torch.")
        return f"{self.dtype}{' as TF32' if self.allow_tf32 else ''}, {memory_format}"

    def numbers(self, *shape: int) -> Tensor:
        x = torch.empty(shape, dtype=self.dtype, device=self.device)
        return x if x.is_cpu else x.normal_()

    def queries(self, channels: int) -> Tensor:
        """A map of the frame."""
        return self._map(channels, _QUERIES)

    def keys(self, channels: int) -> Tensor:
        """A pooled map."""
        return self._map(channels, _KEYS)

    def weight(self, *shape: int) -> Tensor:
        return self.numbers(*shape) * shape[-1] ** -0.5

    def _map(self, channels: int, size: tuple[int, int]) -> Tensor:
        return self.numbers(1, channels, *size).to(memory_format=self.memory_format)


def operators() -> list[str]:
    """Those that have Triton kernels."""
    return sorted(name for name in OPERATORS if has_kernel("triton", name))


def workloads(device: torch.device) -> Iterator[tuple[str, Callable[[], object]]]:
    """Operators and calls of them, on tensors of `device`."""
    for memory_format in (torch.channels_last, torch.contiguous_format):
        for dtype, allow_tf32 in (
            (torch.float16, False),
            (torch.float32, True),
            (torch.float32, False),
        ):
            inputs = Inputs(dtype, allow_tf32, memory_format, device)
            for name in operators():
                operator = OPERATORS[name]
                keywords = {"allow_tf32": allow_tf32} if operator.takes_tf32 else {}
                module = importlib.import_module(f"..{name}", __package__)
                for arguments in module.workloads(inputs):
                    yield name, partial(run, operator, *arguments, **keywords)
