"""Blocks of diffusers."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tdnet_ops.swap import source
from tdnet_ops.swap.blocks.parts import attend
from tdnet_ops.swap.fused_class import original_forward
from tdnet_ops.swap.known_block import Forward, KnownBlock, Refused

_MODULE = "diffusers.models.attention_processor"
# The scale of the logits: the newer one leaves it to torch, whatever the block says.
_SCALES = {
    f"{_MODULE}.AttnProcessor": lambda block: block.scale,
    f"{_MODULE}.AttnProcessor2_0": lambda block: None,
}
_SOURCES = {
    f"{_MODULE}.AttnProcessor": ("e70c18bf8de8",),
    f"{_MODULE}.AttnProcessor2_0": ("a89d46dc24b4",),
}


def self_attention(
    block: Any,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor | None = None,
    attention_mask: Tensor | None = None,
    **keywords: Any,
) -> Tensor:
    scale = _SCALES.get(_processor(block))
    other = encoder_hidden_states is not None or attention_mask is not None
    # A time embedding is for the spatial norm, which was refused.
    if scale is None or other or keywords.keys() - {"temb"}:
        return original_forward(
            block, hidden_states, encoder_hidden_states, attention_mask, **keywords
        )
    is_map = hidden_states.dim() == 4
    tokens = hidden_states.flatten(2).transpose(1, 2) if is_map else hidden_states
    if block.group_norm is not None:
        tokens = block.group_norm(tokens.transpose(1, 2)).transpose(1, 2)
    q, k, v = block.to_q(tokens), block.to_k(tokens), block.to_v(tokens)
    out = attend(q, k, v, block.to_out[0], scale=scale(block), heads=block.heads)
    out = block.to_out[1](out)
    if is_map:
        out = out.transpose(1, 2).reshape(hidden_states.shape)
    return out + hidden_states if block.residual_connection else out


def _processor(block: Any) -> str:
    cls = type(block.processor)
    return f"{cls.__module__}.{cls.__qualname__}"


def _convert(block: Any) -> Forward:
    path = _processor(block)
    if path not in _SCALES:
        raise Refused(f"its processor is {path}")
    digest = source.digest(type(block.processor), ("__call__",))
    if digest not in _SOURCES[path]:
        raise Refused(f"its processor is not the one known (source {digest})")
    if block.is_cross_attention:
        raise Refused("its keys are not of the map")
    if block.rescale_output_factor != 1:
        raise Refused(f"its output is divided by {block.rescale_output_factor}")
    for norm in ("spatial_norm", "norm_q", "norm_k"):
        if getattr(block, norm, None) is not None:
            raise Refused(f"it has a {norm}")
    if block.inner_kv_dim != block.inner_dim:
        raise Refused("several heads share keys")
    return self_attention


KNOWN_BLOCKS = (
    KnownBlock(
        paths=(f"{_MODULE}.Attention",),
        convert=_convert,
        sources=("4f0ca2073962", "494017c9cfce"),
        methods=("forward", "head_to_batch_dim", "batch_to_head_dim", "get_attention_scores"),
    ),
)
