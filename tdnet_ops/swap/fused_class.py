"""A block becomes fused by its class alone: a subclass of its own, with another forward.

So its parameters, parts, hooks and mode are the very same ones, and isinstance still holds.
"""

from __future__ import annotations

import functools
from typing import Any
from weakref import WeakValueDictionary

from torch import nn

from tdnet_ops.nn import has_hooks
from tdnet_ops.swap.known_block import Forward

# One class for all blocks alike: torch.compile would compile anew for every other one.
_CLASSES: WeakValueDictionary[tuple[Any, ...], type] = WeakValueDictionary()


def is_fused(block: nn.Module) -> bool:
    return hasattr(type(block), "fused_from")


def fuse(block: nn.Module, forward: Forward, skipped: tuple[str, ...] = ()) -> None:
    """Gives the block the fused forward, in place.

    Args:
        block: of a class that is not fused.
        forward: with self first.
        skipped: names of parts that the original calls and the fused forward does not. Where one of
            them has hooks, the original forward runs.
    """
    block.__class__ = _fused_class(type(block), forward, skipped)


def unfuse(block: Any) -> None:
    """Gives the block its own class back, in place.

    Raises:
        ValueError: the block was given parametrizations after it was fused.
    """
    if "fused_from" not in vars(type(block)):
        raise ValueError(f"block: expected no parametrizations since it was fused, got {block}")
    block.__class__ = type(block).fused_from


def original_forward(block: Any, *args: Any, **kwargs: Any) -> Any:
    """What a fused block computed before, for calls that its fused forward does not cover."""
    return type(block).fused_from.forward(block, *args, **kwargs)


def _fused_class(original: type, forward: Forward, skipped: tuple[str, ...]) -> type:
    key = (original, forward, skipped)
    found = _CLASSES.get(key)
    if found is None:
        found = _CLASSES[key] = _make(original, forward, skipped)
    return found


def _make(original: Any, forward: Forward, skipped: tuple[str, ...]) -> type:
    @functools.wraps(forward)
    def fused_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        for name in skipped:
            if has_hooks(self.get_submodule(name)):
                return original.forward(self, *args, **kwargs)
        return forward(self, *args, **kwargs)

    def reduce(self: Any, protocol: Any) -> tuple[Any, ...]:
        # The class itself is not to be found by its name.
        _, _, *state = original.__reduce_ex__(self, protocol)
        return (_new, (original, forward, skipped), *state)

    contents = {
        "__module__": original.__module__,
        "__reduce_ex__": reduce,
        "forward": fused_forward,
        "fused_from": original,
    }
    return type(original)("Fused" + original.__name__, (original,), contents)


def _new(original: type, forward: Forward, skipped: tuple[str, ...]) -> Any:
    made: Any = _fused_class(original, forward, skipped)
    return made.__new__(made)
