"""The processes of a training: this one, or those that torchrun started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Processes:
    """This one, and how many there are.

    Attributes:
        rank: of this one, from 0.
        count: how many.
        device: where this one computes.
    """

    rank: int
    count: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """The one that writes and speaks."""
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """Of all processes; the argument is left as it is."""
        if self.count == 1:
            return value
        total = value.to(self.device, copy=True)
        dist.all_reduce(total)
        return total

    def any(self, flag: bool) -> bool:
        """Whether it is set in one of them."""
        return bool(self.sum(torch.tensor(int(flag), device=self.device)) > 0)


@contextmanager
def joined_processes(device: str | None) -> Iterator[Processes]:
    """This process among those of torchrun, which has set RANK, WORLD_SIZE and LOCAL_RANK.

    Args:
        device: of torch; None: CUDA where there is any. Of several processes each takes a GPU of
            its own.

    Raises:
        ValueError: there is no such device.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    chosen = _device(device, count)
    if count == 1:
        yield Processes(0, 1, chosen)
        return
    # The others wait for the first one while it validates.
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(days=1))
    try:
        yield Processes(rank, count, chosen)
    finally:
        dist.destroy_process_group()


def _device(name: str | None, processes: int) -> torch.device:
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if processes > 1 and device.type == "cuda":
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        line = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"device: expected one that torch finds for each process, got {name!r}: {line}"
        ) from error
    return device
