"""explain: what swap would do, and what it would save."""

from __future__ import annotations

import dataclasses
import functools
import time
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tdnet_ops.swap.fused_class import fuse, is_fused, unfuse
from tdnet_ops.swap.replacement import Found, examine, sharing_copy
from tdnet_ops.swap.report import Cost, Entry, Report
from tdnet_ops.swap.verification import independent_copy

_SECONDS = 0.2
_LEAST_ROUNDS = 3

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def explain(model: nn.Module, *inputs: Any, **keywords: Any) -> Report:
    """What `swap` would fuse and what it would refuse; the model stays as it is.

    Args:
        model: any module.
        inputs, keywords: of the model. If given, the model runs with them once, without gradients,
            and each block that can be fused is then timed at the inputs that reached it, fused and
            as it was, in turn; `Entry.original` and `Entry.fused` tell.
    """
    found = list(examine(model))
    entries = [one.entry for one in found]
    if inputs or keywords:
        with torch.no_grad():
            calls = _first_calls(model, entries, inputs, keywords)
            entries = [_with_costs(one, calls.get(one.entry.name)) for one in found]
    return Report(tuple(entries))


def _first_calls(
    model: nn.Module, entries: list[Entry], inputs: tuple[Any, ...], keywords: dict[str, Any]
) -> dict[str, Arguments]:
    """Arguments of each block, in a run of the model that changes no buffer of it."""
    ran = sharing_copy(model, buffers=False)
    calls: dict[str, Arguments] = {}
    for entry in entries:

        def record(_: Any, args: Any, kwargs: Any, name: str = entry.name) -> None:
            calls.setdefault(name, (args, kwargs))

        ran.get_submodule(entry.name).register_forward_pre_hook(record, with_kwargs=True)
    ran(*inputs, **keywords)
    return calls


def _with_costs(found: Found, call: Arguments | None) -> Entry:
    if found.entry.refusal is not None or call is None:
        return found.entry
    original, fused = independent_copy(found.block), independent_copy(found.block)
    if is_fused(original):
        unfuse(original)
    elif found.forward is not None:
        fuse(fused, found.forward, found.skipped)
    args, kwargs = call
    calls = [functools.partial(block, *args, **kwargs) for block in (original, fused)]
    costs = [
        Cost(seconds, _peak_bytes(one))
        for seconds, one in zip(_interleaved(*calls), calls, strict=True)
    ]
    return dataclasses.replace(found.entry, original=costs[0], fused=costs[1])


def _interleaved(*calls: Callable[[], object]) -> list[float]:
    """The least seconds of each call, taken in turn; the first round warms up."""
    rounds: list[list[float]] = []
    end = time.perf_counter() + _SECONDS
    while len(rounds) <= _LEAST_ROUNDS or time.perf_counter() < end:
        rounds.append([_seconds(call) for call in calls])
    return [min(times) for times in zip(*rounds[1:], strict=True)]


def _seconds(call: Callable[[], object]) -> float:
    _synchronize()
    start = time.perf_counter()
    call()
    _synchronize()
    return time.perf_counter() - start


def _synchronize() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def _peak_bytes(call: Callable[[], object]) -> int:
    with _Alive() as alive:
        call()
    return alive.peak


class _Alive(TorchDispatchMode):
    """Counts the bytes of the tensors that operators return while these live."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for given in tree_leaves((args, kwargs)):
            self._count(given, 0)
        returned = func(*args, **(kwargs or {}))
        for made in tree_leaves(returned):
            self._count(made, None)
        return returned

    def _count(self, x: Any, size: int | None) -> None:
        if not isinstance(x, Tensor):
            return
        storage = x.untyped_storage()
        if id(storage) in self._known:
            return
        size = storage.nbytes() if size is None else size
        self._known.add(id(storage))
        weakref.finalize(storage, self._forget, id(storage), size)
        self.now += size
        self.peak = max(self.peak, self.now)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size
