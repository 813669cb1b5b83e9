"""Attention kernels as peers: what stands in the place of scaled_dot_product_attention.

Each is a function (q, k, v) -> out of `case.Attend`, scale 1 / sqrt(d_k). Kernels that want d_v =
d_k get the values as d_v / d_k heads that share their queries and keys, which costs them the logits
once a head ("heads" in a name says so where there is a peer without), or queries and keys padded.
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
    """Gives `attend` d_v / d_k heads of d_k channels, rounded up, for each head of the call."""
    channels, width = v.shape[-1], q.shape[-1]
    parts = -(-channels // width)
    values = F.pad(v, (0, parts * width - channels)).unflatten(-1, (parts, width))
    values = values.transpose(2, 3).flatten(1, 2)
    queries, keys = (x[:, :, None].expand(-1, -1, parts, -1, -1).flatten(1, 2) for x in (q, k))
    out = attend(queries, keys, values).unflatten(1, (-1, parts))
    return out.transpose(2, 3).flatten(3)[..., :channels]


def _padded(attend: Callable[..., Any], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Gives `attend` queries, keys and values of one width, a multiple of 64, filled with zeros."""
    widest = max(q.shape[-1], v.shape[-1])
    width = -(-widest // 64) * 64
    q_padded, k_padded, v_padded = (F.pad(x, (0, width - x.shape[-1])) for x in (q, k, v))
    out: Tensor = attend(q_padded, k_padded, v_padded, scale=q.shape[-1] ** -0.5)
    return out[..., : v.shape[-1]]


def _tokens_before_heads(attend: Callable[..., Any], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """For packages whose tensors are [B, tokens, heads, channels]."""
    out = attend(*(x.transpose(1, 2) for x in (q, k, v)))
    # Some releases of FlashAttention 3 return (out, logsumexp).
    first: Tensor = out[0] if isinstance(out, tuple) else out
    return first.transpose(1, 2)


def _without_batch(attend: Callable[..., Any], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """For packages whose tensors are [tokens, heads, channels]: a batch is more heads."""
    out: Tensor = attend(*(x.flatten(0, 1).transpose(0, 1) for x in (q, k, v)))
    return out.transpose(0, 1).unflatten(0, q.shape[:2])


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


def _ffpa(dtype: torch.dtype) -> Attend:
    function = load("ffpa_attn").ffpa_attn_func
    _half_only(dtype)

    def attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        if not 256 < q.shape[-1] <= 1024:
            raise Refusal(f"made for 257 to 1024 channels, else it calls SDPA, got {q.shape[-1]}")
        out: Tensor = function(q, k, v, scale=scale)
        return out

    return partial(_padded, attend)


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
    "ffpa-padded": _ffpa,
    "xformers": _xformers,
}
# The distributions behind those that are not torch's.
DISTRIBUTIONS = {
    "flash-attn": "flash-attn",
    "flash-attn-3": "flash-attn-3",
    "flashinfer": "flashinfer-python",
    "ffpa-padded": "ffpa-attn",
    "xformers": "xformers",
}
