"""Attention to the best keys of each query alone, as space-time memories are read."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tdnet_ops import checks
from tdnet_ops.gradients import scale_of, wide, without_autocast
from tdnet_ops.layouts import layout

# Numbers held at once of logits, or of keys and values that were chosen: 16 MB of float32.
_CHUNK_NUMBERS = 1 << 22


def top_k_propagate(
    q: Tensor, k: Tensor, v: Tensor, top_k: int, scale: float | None = None
) -> Tensor:
    """softmax(the top_k largest of q k^T * scale) times the values of those keys, for each query.

    As STCN (arXiv 2106.05210) and XMem (arXiv 2207.07115) read their memory; their similarities
    come by `with_l2_similarity` and `with_shrinkage_and_selection`. Of equal logits, those that
    torch.topk chooses.

    No N x M matrix is stored: logits are computed in chunks of queries, and again in the backward
    pass those of the chosen keys, whose indices [B, N, top_k] it keeps. Computed in float32, in
    float64 for float64, under autocast too.

    Args:
        q: [B, d_k, H, W], or tokens [B, N, d_k].
        k: [B, d_k, h, w], frames [B, d_k, T, h, w], or tokens [B, M, d_k].
        v: as k, of d_v channels. A batch of 1 goes with any: one affinity reads several objects.
        top_k: from 1 to the number of keys.
        scale: 1 / sqrt(d_k) if None.

    Returns:
        [B, d_v, H, W] in the layout of q, or [B, N, d_v]; differentiable in q, k and v, twice
        too; not by torch.func, which refuses checkpoints.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    scale = checks.optional_number("scale", scale)
    query, key, value = _check(q, k, v, checks.integer("top_k", top_k))
    queries, keys, values = (wide(x.flatten(2).transpose(1, 2)) for x in (query, key, value))
    with without_autocast(q.device.type):
        queries = queries * scale_of(query, scale)
        with torch.no_grad():
            indices = _best_keys(queries, keys, top_k)
        out = _read_in_chunks(queries, keys, values, indices).to(v.dtype)
    if q.dim() == 3:
        return out
    found = out.transpose(1, 2).unflatten(2, q.shape[2:])
    return found.contiguous(memory_format=layout(q))


def _best_keys(queries: Tensor, keys: Tensor, top_k: int) -> Tensor:
    """[B, N, d_k] and [B, M, d_k] -> indices [B, N, top_k]."""
    batch = max(queries.shape[0], keys.shape[0])
    chunks = queries.split(_queries_at_once(batch * keys.shape[1]), 1)
    transposed = keys.transpose(1, 2)
    return torch.cat([(some @ transposed).topk(top_k, -1).indices for some in chunks], 1)


def _read_in_chunks(queries: Tensor, keys: Tensor, values: Tensor, indices: Tensor) -> Tensor:
    """-> [B, N, d_v]. Nothing that a chunk computes is kept for the backward pass."""
    batch = max(indices.shape[0], values.shape[0])
    numbers = batch * indices.shape[2] * (keys.shape[2] + values.shape[2])
    chunk = _queries_at_once(numbers)
    read = [
        checkpoint(_read, some, keys, values, best, use_reentrant=False, preserve_rng_state=False)
        for some, best in zip(queries.split(chunk, 1), indices.split(chunk, 1), strict=True)
    ]
    return torch.cat(read, 1)


def _read(queries: Tensor, keys: Tensor, values: Tensor, indices: Tensor) -> Tensor:
    logits = _chosen(keys, indices) @ queries.unsqueeze(-1)  # [B, N, top_k, 1]
    weights = logits.softmax(2).transpose(2, 3)
    return (weights @ _chosen(values, indices)).squeeze(2)


def _chosen(x: Tensor, indices: Tensor) -> Tensor:
    """[B or 1, M, C] and [B or 1, N, top_k] -> [B, N, top_k, C]."""
    first = torch.arange(x.shape[0], device=x.device) * x.shape[1]
    return F.embedding(indices + first[:, None, None], x.flatten(0, 1))


def _queries_at_once(numbers_each: int) -> int:
    return max(1, _CHUNK_NUMBERS // max(1, numbers_each))


def _check(q: Tensor, k: Tensor, v: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The three with channels first."""
    query = checks.channels_first("q", q, ranks=(3, 4))
    key, value = checks.channels_first("k", k), checks.channels_first("v", v)
    checks.check_size("k", key, 1, query.shape[1], "channels of q")
    for name, x in (("k", key), ("v", value)):
        checks.check_matches(name, x, "q", query)
    if value.shape[2:] != key.shape[2:]:
        expected = list(key.shape[2:])
        raise ValueError(f"v: expected the sizes of k, {expected}, got shape {list(v.shape)}")
    batch = max(x.shape[0] for x in (query, key, value))
    for name, x in (("q", query), ("k", key), ("v", value)):
        if x.shape[0] not in (1, batch):
            raise ValueError(f"{name}: expected a batch of 1 or {batch}, got shape {list(x.shape)}")
    checks.check_positive("top_k", top_k)
    count = key.shape[2:].numel()
    if top_k > count:
        raise ValueError(f"top_k: expected at most {count}, the number of keys, got {top_k}")
    return query, key, value
