"""Blocks of ultralytics."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tdnet_ops.operators import attention_propagate
from tdnet_ops.swap.fused_class import original_forward
from tdnet_ops.swap.known_block import Forward, KnownBlock


def attention(block: Any, x: Tensor) -> Tensor:
    """Of PSA and its kin: a head's queries, keys and values lie side by side."""
    if getattr(block, "format", None) == "coreml":
        return original_forward(block, x)
    qkv = block.qkv(x).unflatten(1, (block.num_heads, -1))
    q, k, v = qkv.split((block.key_dim, block.key_dim, block.head_dim), 2)
    q, k, v = q.flatten(1, 2), k.flatten(1, 2), v.flatten(1, 2)
    positions = block.pe(v)
    return block.proj(
        attention_propagate(q, k, v, positions, scale=block.scale, heads=block.num_heads)
    )


def _convert(block: Any) -> Forward:
    return attention


KNOWN_BLOCKS = (
    KnownBlock(
        paths=("ultralytics.nn.modules.block.Attention",),
        convert=_convert,
        sources=("def2200fa907", "8896731cb34e"),
    ),
)
