"""A row of the table of known blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

# The forward of a block, with self and the arguments of the original.
Forward = Callable[..., Any]
Size = tuple[int, int]


class Refused(ValueError):
    """A block is left as it is; the text says why."""


def one_map(block: nn.Module, batch: int, size: Size) -> tuple[Any, ...]:
    """[B, C, H, W], or tokens [B, H * W, C] if the first layer with weights is linear."""
    for part in block.modules():
        if isinstance(part, nn.Conv2d):
            return (torch.randn(batch, part.in_channels, *size),)
        if isinstance(part, nn.Linear):
            return (torch.randn(batch, size[0] * size[1], part.in_features),)
    raise Refused("its inputs are not known: it has no convolution, and register was given none")


@dataclass(frozen=True)
class KnownBlock:
    """A class of which is known what it computes.

    Attributes:
        paths: where the class stands, or stood, in its package: "timm.layers.NonLocalAttn".
        convert: the fused forward of a block; raises `Refused` if its settings have none. It must
            be a function that pickle finds again, so one of a module.
        sources: digests (`source.digest`) of the code that this was written for, one a version.
        methods: that the digest covers; those that forward depends on.
        inputs: of the block, for a batch and a size of the map; it is verified with them.
    """

    paths: tuple[str, ...]
    convert: Callable[[Any], Forward]
    sources: tuple[str, ...] = ()
    methods: tuple[str, ...] = ("forward",)
    inputs: Callable[[Any, int, Size], tuple[Any, ...]] = one_map


def never(reason: str) -> Callable[[nn.Module], Forward]:
    """The `convert` of a block that only looks alike."""

    def refuse(block: nn.Module) -> Forward:
        raise Refused(reason)

    return refuse
