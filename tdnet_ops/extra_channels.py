"""Other logits than q k^T, exact, by extra channels of queries and keys.

No kernel, no N x M matrix. Every function takes queries and keys and returns `(q, k, scale)` for
`attention_propagate` or `top_k_propagate`, differentiable:

    q, k, scale = with_l2_similarity(q, k)
    out = tdnet_ops.attention_propagate(q, k, v, scale=scale)

Shapes, as attention_propagate takes them: q [B, heads * d_k, H, W] or tokens [B, N, heads * d_k];
k [B, heads * d_k, h, w], frames [B, heads * d_k, T, h, w], or tokens [B, M, heads * d_k]. Each head
has its extra channels behind its own. What is returned has the layout and dtype of what was given.
`scale` is 1 / sqrt(d_k) if None, of d_k as given. Norms are added in float32 at least.

Errors: TypeError or ValueError that names the argument, what was expected and what came.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tdnet_ops import checks
from tdnet_ops.gradients import scale_of, wide

QueriesKeysScale = tuple[Tensor, Tensor, float]

# What -inf becomes: beside any logit its weight is 0, and 0 times it is no NaN.
_NO_KEY = {torch.float16: 6e4}
_NO_KEY_ELSE = 1e30


def with_key_bias(
    q: Tensor, k: Tensor, bias: Tensor, scale: float | None = None, heads: int = 1
) -> QueriesKeysScale:
    """Logits q k^T * scale + bias, of each key its own; -inf leaves a key out.

    [q, c] [k, bias / (scale c)]^T * scale = q k^T * scale + bias, c a power of two near 1 / scale.

    In half precision the bias is the sum of two channels, good to 16 bits and more. Less than -6e4
    (float16) or -1e30 counts as no key. Where no key is left the result is the mean of all values,
    where a softmax is NaN.

    Args:
        bias: [B or 1, heads or 1, ...], then the sizes of k: h, w or T, h, w or M; of any float
            dtype, or bool: False leaves a key out.
    """
    query, key, scale = _prepare(q, k, scale, heads)
    _check_bias(bias, key, heads)
    if bias.dtype == torch.bool:
        bias = torch.zeros_like(bias, dtype=torch.float32).masked_fill(~bias, -math.inf)
    factor = 2.0 ** min(math.ceil(-math.log2(abs(scale))), 15)  # float16 has no more
    dtype = _dtype_of_products(key)
    lowest = -_NO_KEY.get(dtype, _NO_KEY_ELSE) * factor * abs(scale)
    wanted = wide(bias).clamp(min=lowest) / (factor * scale)
    channel = _in_parts(wanted, dtype).expand(key.shape[0], heads, -1, *key.shape[2:])
    constant = query.new_full((), factor).expand(
        query.shape[0], heads, channel.shape[2], *query.shape[2:]
    )
    return _like(q, _append(query, constant, heads)), _like(k, _append(key, channel, heads)), scale


def with_l2_similarity(
    q: Tensor, k: Tensor, scale: float | None = None, heads: int = 1
) -> QueriesKeysScale:
    """Logits -|q - k|^2 * scale, as STCN compares (arXiv 2106.05210).

    -|q - k|^2 = 2 q k^T - |k|^2 - |q|^2, and the softmax over keys cancels what a query has alone,
    |q|^2: it is left out, of the log-sum-exp too.
    """
    _, key, scale = _prepare(q, k, scale, heads)
    norm = wide(key).unflatten(1, (heads, -1)).square().sum(2)
    return with_key_bias(q, k, -scale * norm, 2 * scale, heads)


def with_shrinkage_and_selection(
    q: Tensor,
    k: Tensor,
    shrinkage: Tensor,
    selection: Tensor,
    scale: float | None = None,
) -> QueriesKeysScale:
    """Logits -s sum_c e_c (k_c - q_c)^2 * scale, as XMem compares (arXiv 2207.07115, Eq. 2).

    = [-s k^2, s k, s] [e, 2 e q, -sum_c e_c q_c^2]^T * scale: 2 d_k + 1 channels. The last does not
    cancel as that of with_l2_similarity, for each key shrinks it by its own s.

    Squares that nearly cancel want float32: half precision keeps 8 to 11 bits of each.

    Args:
        shrinkage: s, [B, 1, ...] of the sizes of k; of tokens [B, M, 1].
        selection: e, of the shape of q.
    """
    query, key, scale = _prepare(q, k, scale, 1)
    e = checks.channels_first("selection", selection)
    s = checks.channels_first("shrinkage", shrinkage)
    _check_shape("selection", selection, list(q.shape), "as q")
    of_key = list(k.shape)
    of_key[2 if k.dim() == 3 else 1] = 1
    _check_shape("shrinkage", shrinkage, of_key, "one number a key")
    e, s, wide_q, wide_k = wide(e), wide(s), wide(query), wide(key)
    last = -(e * wide_q.square()).sum(1, keepdim=True)
    queries = _append(e, torch.cat([2 * e * wide_q, last], 1).unsqueeze(1))
    keys = _append(-s * wide_k.square(), torch.cat([s * wide_k, s], 1).unsqueeze(1))
    return _like(q, queries).to(q.dtype), _like(k, keys).to(k.dtype), scale


def with_relative_positions(
    q: Tensor,
    k: Tensor,
    rows: Tensor,
    columns: Tensor,
    scale: float | None = None,
    heads: int = 1,
) -> QueriesKeysScale:
    """Logits q k^T * scale + q . rows[y, i] + q . columns[x, j], query at (y, x), key at (i, j).

    [q, q rows[y] / scale, q columns[x] / scale] [k, onehot(i), onehot(j)]^T * scale: h + w more
    channels.

    That is the decomposed relative position bias of SAM and MViTv2 (arXiv 2112.01526): `rows` and
    `columns` are its `get_rel_pos(H, h, rel_pos_h)` and `get_rel_pos(W, w, rel_pos_w)`. BoTNet
    (arXiv 2101.11605) scales q first: `rows[y, i] = scale * rel_height[i - y + h - 1]`, and alike
    the columns. Absolute positions need no channel: q (k + position)^T.

    Args:
        q, k: maps.
        rows: [H, h, d_k], the same for all heads.
        columns: [W, w, d_k].
    """
    checks.check_tensor("q", q, 4)
    checks.check_tensor("k", k, 4)
    query, key, scale = _prepare(q, k, scale, heads)
    d_k, (height, width) = query.shape[1] // heads, key.shape[2:]
    _check_shape("rows", rows, [query.shape[2], height, d_k], "H, h, d_k")
    _check_shape("columns", columns, [query.shape[3], width, d_k], "W, w, d_k")
    split = query.unflatten(1, (heads, d_k))
    along_rows = torch.einsum("bncyx,yic->bniyx", split, rows)
    along_columns = torch.einsum("bncyx,xjc->bnjyx", split, columns)
    positions = torch.cat([along_rows, along_columns], 2) / scale
    of_row = torch.eye(height, device=k.device)[:, :, None].expand(-1, -1, width)
    of_column = torch.eye(width, device=k.device)[:, None, :].expand(-1, height, -1)
    onehot = torch.cat([of_row, of_column]).expand(k.shape[0], heads, -1, -1, -1)
    return _append(query, positions, heads), _append(key, onehot, heads), scale


def _prepare(q: Tensor, k: Tensor, scale: float | None, heads: int) -> tuple[Tensor, Tensor, float]:
    """q and k with channels first; the scale of attention_propagate."""
    scale = checks.optional_number("scale", scale)
    checks.check_positive("heads", checks.integer("heads", heads))
    query, key = checks.channels_first("q", q), checks.channels_first("k", k)
    checks.check_heads("q", query, heads)
    checks.check_size("k", key, 1, query.shape[1], "channels of q")
    if scale == 0:
        raise ValueError("scale: expected a number other than 0, got 0.0")
    return query, key, scale_of(query, scale, heads)


def _like(x: Tensor, with_channels_first: Tensor) -> Tensor:
    return with_channels_first.transpose(1, 2) if x.dim() == 3 else with_channels_first


def _append(x: Tensor, extra: Tensor, heads: int = 1) -> Tensor:
    """[B, heads * C, ...] and [B, heads, E, ...] -> [B, heads * (C + E), ...], the layout of x."""
    last = x.stride(1) == 1
    where = (-2, -1) if last else (1, 2)
    parts = [y.movedim((1, 2), where) for y in (x.unflatten(1, (heads, -1)), extra.to(x.dtype))]
    return torch.cat(parts, where[1]).flatten(*where).movedim(-1 if last else 1, 1)


def _in_parts(x: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, heads, ...] -> [B, heads, parts, ...] of this dtype, whose sum over parts is x."""
    high = x.to(dtype)
    if dtype not in (torch.float16, torch.bfloat16):
        return high.unsqueeze(2)
    return torch.stack([high, (x - high).to(dtype)], 2)


def _dtype_of_products(x: Tensor) -> torch.dtype:
    """Of attention_propagate, whose tensors autocast casts."""
    device = x.device.type
    if x.dtype == torch.float64 or not torch.amp.is_autocast_available(device):
        return x.dtype
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def _check_bias(bias: Tensor, key: Tensor, heads: int) -> None:
    if not isinstance(bias, Tensor):
        raise TypeError(f"bias: expected a tensor, got {type(bias).__name__}")
    batch, sizes = key.shape[0], list(key.shape[2:])
    got = list(bias.shape)
    if got[2:] != sizes or len(got) < 3 or got[0] not in (1, batch) or got[1] not in (1, heads):
        raise ValueError(
            f"bias: expected [1 or {batch}, 1 or {heads}, {', '.join(map(str, sizes))}], got "
            f"shape {got}"
        )


def _check_shape(name: str, x: Tensor, expected: list[int], what: str) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(x).__name__}")
    if list(x.shape) != expected:
        raise ValueError(f"{name}: expected shape {expected} ({what}), got {list(x.shape)}")
