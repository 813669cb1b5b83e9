"""Attention kernels as peers: what stands in the place of scaled_dot_product_attention.

Each is a function (q, k, v) -> out of `case.Attend`, one head, scale 1 / sqrt(d_k). Kernels that
want d_v = d_k get the values as d_v / d_k heads that share their queries and keys, which costs them
the logits once a head; "heads" in a name says so where there is a peer without.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from tdnet_ops.bench.case import Attend
from tdnet_ops.bench.engines import Refusal, load


def _sdpa(backend: SDPBackend, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(q, k, v)


def _heads_of_values(attend: Attend, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Gives `attend` as many heads [B, heads, M, d_k] as hold the d_v channels of the values."""
    channels, width = v.shape[-1], q.shape[-1]
    heads = -(-channels // width)
    values = F.pad(v, (0, heads * width - channels))
    values = values.squeeze(1).unflatten(-1, (heads, width)).transpose(1, 2)
    out = attend(q.expand(-1, heads, -1, -1), k.expand(-1, heads, -1, -1), values)
    return out.transpose(1, 2).flatten(2)[:, None, :, :channels]


def _tokens_before_heads(attend: Callable[..., Any], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """For packages whose tensors are [B, tokens, heads, channels]."""
    out = attend(*(x.transpose(1, 2) for x in (q, k, v)))
    # Some releases of FlashAttention 3 return (out, logsumexp).
    first: Tensor = out[0] if isinstance(out, tuple) else out
    return first.transpose(1, 2)


def _without_batch(attend: Callable[..., Any], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """For packages whose tensors are [tokens, heads, channels]."""
    out: Tensor = attend(*(x.squeeze(0).transpose(0, 1) for x in (q, k, v)))
    return out.transpose(0, 1)[None]


def _half_only(dtype: torch.dtype) -> None:
    if dtype not in (torch.float16, torch.bfloat16):
        raise Refusal("it takes float16 and bfloat16 only")


def _flex(dtype: torch.dtype) -> Attend:
    """FlexAttention, whose kernel exists only compiled."""
    library = load("torch.nn.attention.flex_attention")
    torch._dynamo.reset()
    compiled: Attend = torch.compile(library.flex_attention, dynamic=False)
    return compiled


def _flash_attn(dtype: torch.dtype) -> Attend:
    function = load("flash_attn").flash_attn_func
    _half_only(dtype)
    return partial(_heads_of_values, partial(_tokens_before_heads, function))


def _flash_attn_3(dtype: torch.dtype) -> Attend:
    """Takes 512 value channels with 64 of queries and keys."""
    function = load("flash_attn_interface").flash_attn_func
    _half_only(dtype)
    return partial(_tokens_before_heads, function)


def _flashinfer(dtype: torch.dtype) -> Attend:
    function = load("flashinfer").single_prefill_with_kv_cache
    _half_only(dtype)
    return partial(_heads_of_values, partial(_without_batch, function))


def _xformers(dtype: torch.dtype) -> Attend:
    function = load("xformers.ops").memory_efficient_attention
    return partial(_tokens_before_heads, function)


def _sdpa_of(backend: SDPBackend, heads: bool = False) -> Callable[[torch.dtype], Attend]:
    attend = partial(_sdpa, backend)
    return lambda dtype: partial(_heads_of_values, attend) if heads else attend


# By peer's name: makes its function for a dtype, or raises a Refusal.
KERNELS: dict[str, Callable[[torch.dtype], Attend]] = {
    "sdpa-flash": _sdpa_of(SDPBackend.FLASH_ATTENTION),
    "sdpa-flash-heads": _sdpa_of(SDPBackend.FLASH_ATTENTION, heads=True),
    "sdpa-efficient": _sdpa_of(SDPBackend.EFFICIENT_ATTENTION),
    "sdpa-cudnn": _sdpa_of(SDPBackend.CUDNN_ATTENTION),
    "sdpa-cudnn-heads": _sdpa_of(SDPBackend.CUDNN_ATTENTION, heads=True),
    "sdpa-math": _sdpa_of(SDPBackend.MATH),
    "flex": _flex,
    "flash-attn": _flash_attn,
    "flash-attn-3": _flash_attn_3,
    "flashinfer": _flashinfer,
    "xformers": _xformers,
}
# The distributions behind those that are not torch's.
DISTRIBUTIONS = {
    "flash-attn": "flash-attn",
    "flash-attn-3": "flash-attn-3",
    "flashinfer": "flashinfer-python",
    "xformers": "xformers",
}
