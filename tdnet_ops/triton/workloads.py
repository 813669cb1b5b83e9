"""A call for every shape class of every kernel, at the sizes of TDNet: what tune.py chooses for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from tdnet_ops import triton as kernels

# 769 x 1537 at stride 8, and its pooled keys, which are the queries of inner hops too.
_QUERIES, _KEYS = (97, 193), (25, 49)

Workload = tuple[str, Callable[[], object]]


def _map(like: Tensor, channels: int, size: tuple[int, int]) -> Tensor:
    """channels_last"""
    x = torch.randn(1, channels, *size, dtype=like.dtype, device=like.device)
    return x.contiguous(memory_format=torch.channels_last)


def _matrix(like: Tensor, *shape: int) -> Tensor:
    return torch.randn(shape, dtype=like.dtype, device=like.device) * shape[-1] ** -0.5


def workloads(device: torch.device) -> Iterator[Workload]:
    """Names and calls, on tensors of `device`."""
    half, full = (torch.empty(0, dtype=x, device=device) for x in (torch.float16, torch.float32))
    x = _map(half, 512, _QUERIES)
    yield "spatial_pool, channels_last", partial(kernels.spatial_pool, x, 4)
    yield "spatial_pool, contiguous", partial(kernels.spatial_pool, x.contiguous(), 4)
    logits = _map(half, 19, _QUERIES).contiguous()
    yield "upsample_argmax", partial(kernels.upsample_argmax, logits, [769, 1537])
    for like, allow_tf32, kind in (
        (half, False, "half"),
        (full, True, "tf32"),
        (full, False, "float32"),
    ):
        for name, workload in _products(like, allow_tf32):
            yield f"{name}, {kind}", workload


def _products(like: Tensor, allow_tf32: bool) -> Iterator[Workload]:
    q, keys = _map(like, 64, _QUERIES), _map(like, 64, _KEYS)
    deep = _map(like, 256, _QUERIES)
    for x in (q, deep):
        affinity = partial(kernels.pooled_affinity, x, x, 4, allow_tf32=allow_tf32)
        yield f"pooled_affinity, {x.shape[1]}", affinity
    attend = partial(kernels.attention_propagate, allow_tf32=allow_tf32)
    deep_keys, v = _map(like, 256, _KEYS), _map(like, 128, _KEYS)
    yield "attention_propagate, many deep", partial(attend, deep, deep_keys, v)
    yield "attention_propagate, few deep", partial(attend, deep_keys, deep_keys, v)
    for queries in (q, keys):
        logits = _matrix(like, 1, queries[0, 0].numel(), keys[0, 0].numel())
        size = list(queries.shape[2:])
        for channels in (128, 512):
            v = _map(like, channels, _KEYS)
            yield (
                f"attention_propagate, {size}, {channels}",
                partial(attend, queries, keys, v),
            )
            yield (
                f"softmax_propagate, {size}, {channels}",
                partial(kernels.softmax_propagate, logits, v, size, allow_tf32=allow_tf32),
            )
    v, grad = _map(like, 512, _KEYS), _map(like, 512, _QUERIES)
    backward = kernels.attention_propagate_backward
    yield (
        "attention_propagate_backward",
        partial(backward, grad, q, keys, v, None, None, allow_tf32=allow_tf32),
    )
    blocks = [_map(like, 128, _QUERIES) for _ in range(4)]
    for side in (1, 3):
        for out_channels in (64, 512):
            weights = [_matrix(like, out_channels, 128, side, side) for _ in blocks]
            padding = side // 2
            reduce = partial(kernels.block_sum_reduce, blocks, weights, None, padding, 1, "none")
            yield (
                f"block_sum_reduce, {side}x{side}, {out_channels}",
                partial(reduce, allow_tf32=allow_tf32),
            )
