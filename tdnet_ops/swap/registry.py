"""The table of known blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from tdnet_ops.swap import source
from tdnet_ops.swap.blocks import KNOWN_BLOCKS
from tdnet_ops.swap.known_block import Forward, KnownBlock, Size, one_map

_BY_PATH = {path: known for known in KNOWN_BLOCKS for path in known.paths}
_BY_CLASS: dict[type, KnownBlock] = {}


def register(
    cls: type[nn.Module],
    convert: Callable[[Any], Forward],
    *,
    inputs: Callable[[Any, int, Size], tuple[Any, ...]] = one_map,
    methods: Sequence[str] = ("forward",),
) -> None:
    """Lets `swap` fuse blocks of a class of one's own, each verified like those known already.

    Args:
        cls: exactly this class, and only while its methods read as they do now.
        convert: takes a block and returns its fused forward, a function `forward(block, ...)` with
            the arguments of the original; defined in a module, pickle finds it again. Raises
            `Refused` with the reason if the block's settings have none.
        inputs: `inputs(block, batch, (height, width))` returns the arguments to verify with. If not
            given: one map [B, C, H, W] of the first convolution's channels, or tokens [B, N, C].
        methods: that forward depends on, itself included.

    Raises:
        TypeError: cls is no class of modules, or convert is no function.
        Refused: a method has no Python source.
    """
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise TypeError(f"cls: expected a subclass of torch.nn.Module, got {cls!r}")
    if not callable(convert):
        raise TypeError(f"convert: expected a function, got {convert!r}")
    digests = (source.digest(cls, methods),)
    _BY_CLASS[cls] = KnownBlock((path(cls),), convert, digests, tuple(methods), inputs)


def known(cls: type) -> KnownBlock | None:
    return _BY_CLASS.get(cls) or _BY_PATH.get(path(cls))


def path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
