"""swap and restore."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from tdnet_ops.swap import look_alikes, registry, source, verification
from tdnet_ops.swap.fused_class import fuse, is_fused, unfuse
from tdnet_ops.swap.known_block import Forward, KnownBlock, Refused
from tdnet_ops.swap.report import Entry, Report


@dataclass(frozen=True)
class Found:
    """A block of a model, and how it is to be fused if it can be."""

    entry: Entry
    block: nn.Module
    forward: Forward | None = None
    skipped: tuple[str, ...] = ()


def swap(
    model: nn.Module, *, inplace: bool = False, strict: bool = False
) -> tuple[nn.Module, Report]:
    """Fuses the attention of every block that is known and turns out to compute the same.

    A block is known by its exact class and by the source of its forward. Fused, it is compared with
    the original on copies with random parameters: outputs, gradients, updates of buffers, in train
    and eval. Names, parameters and hooks stay, so a state_dict loads both ways and an optimizer
    goes on.

    Args:
        model: any module.
        inplace: fuse the model itself; else a copy of its modules, which shares its parameters and
            buffers.
        strict: raise if a block that computes attention is not fused.

    Returns:
        The fused model, and what became of every block that computes attention.

    Raises:
        ValueError: a block was refused and `strict` is given; the model is as it was.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    model = model if inplace else sharing_copy(model)
    found = list(examine(model))
    report = Report(tuple(one.entry for one in found))
    if strict and report.refused:
        raise ValueError(f"model: expected all attention fused, got\n{Report(report.refused)}")
    for one in found:
        if one.forward is not None:
            fuse(one.block, one.forward, one.skipped)
    return model, report


def restore(model: nn.Module) -> nn.Module:
    """Gives every fused block its own forward back, in place; returns the model."""
    for module in model.modules():
        if is_fused(module):
            unfuse(module)
    return model


def examine(model: nn.Module) -> Iterator[Found]:
    """All blocks that compute attention; parts of a block that can be fused are not looked at."""
    inside: set[nn.Module] = set()
    for name, module in model.named_modules():
        found = None if module in inside else _examine_block(name, module)
        if found is None:
            continue
        yield found
        if found.entry.refusal is None:
            inside.update(module.modules())


def _examine_block(name: str, block: Any) -> Found | None:
    if is_fused(block):
        return Found(Entry(name, registry.path(type(block).fused_from)), block)
    path = registry.path(type(block))
    known = registry.known(type(block))
    if known is None:
        told = _parametrized_or_subclass(block) or look_alikes.reason(block)
        return Found(Entry(name, path, told), block) if told else None
    try:
        forward, skipped = _convert(block, known)
    except Refused as refusal:
        return Found(Entry(name, path, str(refusal)), block)
    return Found(Entry(name, path), block, forward, skipped)


def _convert(block: nn.Module, known: KnownBlock) -> tuple[Forward, tuple[str, ...]]:
    """The fused forward, verified, and the parts that it does not call."""
    _check_source(type(block), known)
    for method in known.methods:
        if method in vars(block):
            raise Refused(f"its {method} was replaced on the instance")
    if getattr(block, "_compiled_call_impl", None) is not None:
        raise Refused("it is compiled; swap before")
    forward = known.convert(block)
    if not callable(forward) or isinstance(forward, nn.Module):
        raise TypeError(f"convert: expected it to return a function, got {forward!r}")
    return forward, verification.verify(block, forward, known.inputs)


def _check_source(cls: type, known: KnownBlock) -> None:
    if not known.sources:
        return
    digest = source.digest(cls, known.methods)
    if digest not in known.sources:
        raise Refused(f"its forward is not the one known (source {digest})")


def _parametrized_or_subclass(block: nn.Module) -> str | None:
    for base in type(block).__mro__[1:]:
        if registry.known(base) is None:
            continue
        if parametrize.is_parametrized(block):
            return "it has parametrizations of its own"
        return f"its forward is not the one known: a subclass of {registry.path(base)}"
    return None


def sharing_copy(model: nn.Module, buffers: bool = True) -> nn.Module:
    """A copy of the modules alone, with the same parameters and, if asked for, buffers."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        tables: list[dict[str, Any]] = [module._parameters]
        if buffers:
            tables.append(module._buffers)
        for shared in (*tables, *(x for table in tables for x in table.values())):
            memo[id(shared)] = shared
        # deepcopy refuses those with a history, such as the weight under a spectral norm.
        memo.update({id(x): x for x in vars(module).values() if isinstance(x, Tensor)})
    return copy.deepcopy(model, memo)
