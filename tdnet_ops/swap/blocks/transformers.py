"""Blocks of transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tdnet_ops.operators import attention_propagate
from tdnet_ops.swap.blocks.parts import attend
from tdnet_ops.swap.fused_class import original_forward
from tdnet_ops.swap.known_block import Forward, KnownBlock, Refused, Size

_MASKS = {"is_causal", "position_bias"}


def segformer(
    block: Any,
    hidden_states: Tensor,
    height: int,
    width: int,
    attention_mask: Tensor | None = None,
    **keywords: Any,
) -> tuple[Tensor, None]:
    masked = attention_mask is not None or keywords.keys() & _MASKS
    if masked or block.config._attn_implementation != "sdpa":
        return original_forward(block, hidden_states, height, width, attention_mask, **keywords)
    q, reduced = block.q_proj(hidden_states), hidden_states
    if block.sequence_reduction_ratio > 1:
        reduced = block.sequence_reduction(hidden_states, height, width)
    k, v = block.k_proj(reduced), block.v_proj(reduced)
    heads = block.num_attention_heads
    return attend(q, k, v, block.o_proj, scale=block.scaling, heads=heads), None


def _convert_segformer(block: Any) -> Forward:
    implementation = block.config._attn_implementation
    if implementation != "sdpa":
        raise Refused(f"it returns its attention weights (attn_implementation {implementation!r})")
    if block.attention_dropout > 0:
        raise Refused(f"dropout of {block.attention_dropout} on the affinity in training")
    return segformer


def segformer_of_4(
    block: Any, hidden_states: Tensor, height: int, width: int, output_attentions: bool = False
) -> tuple[Tensor, ...]:
    if output_attentions:
        return original_forward(block, hidden_states, height, width, output_attentions)
    reduction = block.sr if block.sr_ratio > 1 else None
    return (_reduced_attention(block, hidden_states, (height, width), reduction),)


def pvt(
    block: Any, hidden_states: Tensor, height: int, width: int, output_attentions: bool = False
) -> tuple[Tensor, ...]:
    if output_attentions:
        return original_forward(block, hidden_states, height, width, output_attentions)
    reduction = block.sequence_reduction if block.sequences_reduction_ratio > 1 else None
    return (_reduced_attention(block, hidden_states, (height, width), reduction),)


def _reduced_attention(block: Any, tokens: Tensor, size: Size, reduction: Any) -> Tensor:
    q = block.query(tokens)
    if reduction is not None:
        tokens = reduction(tokens.transpose(1, 2).unflatten(2, size)).flatten(2).transpose(1, 2)
        tokens = block.layer_norm(tokens)
    k, v = block.key(tokens), block.value(tokens)
    return attention_propagate(q, k, v, heads=block.num_attention_heads)


def _without_dropout(forward: Forward) -> Callable[[Any], Forward]:
    def convert(block: Any) -> Forward:
        if block.dropout.p > 0:
            raise Refused(f"dropout of {block.dropout.p} on the affinity in training")
        return forward

    return convert


def _inputs(query: str, ratio: str) -> Any:
    """Tokens of a map that the reduction makes at least two keys high and wide, and its size."""

    def inputs(block: Any, batch: int, size: Size) -> tuple[Any, ...]:
        height, width = (pixels + 2 * getattr(block, ratio) for pixels in size)
        channels = getattr(block, query).in_features
        return torch.randn(batch, height * width, channels), height, width

    return inputs


KNOWN_BLOCKS = (
    KnownBlock(
        paths=("transformers.models.segformer.modeling_segformer.SegformerAttention",),
        convert=_convert_segformer,
        sources=("26ee461c9afb",),
        inputs=_inputs("q_proj", "sequence_reduction_ratio"),
    ),
    KnownBlock(
        paths=("transformers.models.segformer.modeling_segformer.SegformerEfficientSelfAttention",),
        convert=_without_dropout(segformer_of_4),
        sources=("ce59891ad784", "7fb7ebb01a08"),
        inputs=_inputs("query", "sr_ratio"),
    ),
    KnownBlock(
        paths=("transformers.models.pvt.modeling_pvt.PvtEfficientSelfAttention",),
        convert=_without_dropout(pvt),
        sources=("08bc8b8a05e2",),
        methods=("forward", "transpose_for_scores"),
        inputs=_inputs("query", "sequences_reduction_ratio"),
    ),
)
