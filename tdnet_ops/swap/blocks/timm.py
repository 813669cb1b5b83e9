"""Blocks of timm."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tdnet_ops.swap.blocks.parts import attend
from tdnet_ops.swap.known_block import Forward, KnownBlock, never


def non_local_attention(block: Any, x: Tensor) -> Tensor:
    q, k, v = block.t(x), block.p(x), block.g(x)
    return block.norm(attend(q, k, v, block.z, scale=block.scale)) + x


def _convert_non_local(block: Any) -> Forward:
    return non_local_attention


KNOWN_BLOCKS = (
    KnownBlock(
        paths=(
            "timm.layers.non_local_attn.NonLocalAttn",
            "timm.models.layers.non_local_attn.NonLocalAttn",
        ),
        convert=_convert_non_local,
        sources=("0ffd81d135a2",),
    ),
    KnownBlock(
        paths=("timm.layers.non_local_attn.BatNonLocalAttn",),
        convert=never("bilinear transforms of rows and columns, without a softmax"),
    ),
)
