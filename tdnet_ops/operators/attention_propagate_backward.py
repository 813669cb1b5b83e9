"""attention_propagate_backward: gradients of q, k, v and phi, the affinity recomputed in chunks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tdnet_ops import checks, gradients
from tdnet_ops.layouts import empty_map
from tdnet_ops.operators.attention_propagate import check_attention_propagate
from tdnet_ops.operators.operator import Operator

# Logits computed at once: 4 MB of float32, near the cache, and long enough for the products.
_CHUNK_LOGITS = 1 << 20


def check_attention_propagate_backward(
    grad: Tensor,
    grad_log_sum_exp: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    weight: Tensor | None,
    log_sum_exp: Tensor,
    heads: int,
) -> list[int]:
    """Returns the shape of the forward pass's result, which `grad` has."""
    shape = check_attention_propagate(q, k, v, None, weight, None, heads)
    if weight is not None and heads > 1:
        raise ValueError(
            "weight: expected None beside several heads, which it would mix, "
            f"got shape {list(weight.shape)}"
        )

    def check_like(name: str, x: Tensor, expected: list[int], source: str) -> None:
        checks.check_tensor(name, x, 4)
        for dim in range(4):
            checks.check_size(name, x, dim, expected[dim], source)

    rows = [shape[0], heads, *shape[2:]]
    check_like("grad", grad, shape, "the result")
    checks.check_matches("grad", grad, "q", q)
    check_like("log_sum_exp", log_sum_exp, rows, "batch, heads and pixels of q")
    wide = gradients.wide_dtype(q.dtype)
    if log_sum_exp.dtype != wide:
        raise TypeError(f"log_sum_exp: expected {wide}, got {log_sum_exp.dtype}")
    if grad_log_sum_exp is not None:
        check_like("grad_log_sum_exp", grad_log_sum_exp, rows, "batch, heads and pixels of q")
        checks.check_matches("grad_log_sum_exp", grad_log_sum_exp, "log_sum_exp", log_sum_exp)
    return shape


def _empty(a: Any, _: list[int]) -> tuple[Tensor, ...]:
    grad_weight = a.q.new_empty(0) if a.weight is None else a.weight.new_empty(a.weight.shape)
    return *(empty_map(x, x.shape) for x in (a.q, a.k, a.v)), grad_weight


def in_chunks(
    grad: Tensor,
    grad_log_sum_exp: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    weight: Tensor | None,
    log_sum_exp: Tensor,
    scale: float | None,
    heads: int,
    allow_tf32: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and weight (empty without one); no argument is half precision.

    Every head counts as a batch; with several there is no weight, which would mix them.
    """
    scale = gradients.scale_of(q, scale, heads)
    log_sum_exp = log_sum_exp.flatten(2).flatten(0, 1)  # [B * heads, N]
    # As torch's softmax: a row with +inf is NaN, its finite keys too.
    log_sum_exp = log_sum_exp.masked_fill(log_sum_exp == math.inf, math.nan)
    if grad_log_sum_exp is not None:
        grad_log_sum_exp = grad_log_sum_exp.reshape(log_sum_exp.shape)
    with gradients.products_in(q, allow_tf32):
        values = gradients.fold(v, weight, heads)
        queries, keys, grad_tokens = (gradients.tokens(x, heads) for x in (q, k, grad))
        grad_queries = torch.empty_like(queries)
        grad_keys, grad_values = torch.zeros_like(keys), torch.zeros_like(values)
        for b, n in _chunks(queries.shape[0], queries.shape[1], keys.shape[1]):
            query, grad_out = queries[b, n], grad_tokens[b, n]
            # In place: what stands here at once is twice a chunk.
            minus_rows = -log_sum_exp[b, n, None]
            weights = torch.baddbmm(minus_rows, query, keys[b].mT, alpha=scale).exp_()
            grad_values[b].baddbmm_(weights.mT, grad_out)
            grad_logits = (grad_out @ values[b].mT).mul_(weights)
            shift = grad_logits.sum(-1, keepdim=True)
            if grad_log_sum_exp is not None:
                shift -= grad_log_sum_exp[b, n, None]
            grad_logits.addcmul_(weights, shift, value=-1)
            grad_queries[b, n] = (grad_logits @ keys[b]).mul_(scale)
            grad_keys[b].baddbmm_(grad_logits.mT, query, alpha=scale)
        grad_v, grad_weight = gradients.unfold(grad_values, v, weight)
    return (
        gradients.as_map(grad_queries, q),
        gradients.as_map(grad_keys, k),
        grad_v,
        q.new_empty(0) if grad_weight is None else grad_weight,
    )


def _chunks(batch: int, queries: int, keys: int) -> Iterator[tuple[slice, slice]]:
    """Whole maps where several fit into a chunk, else queries of one."""
    maps = max(1, _CHUNK_LOGITS // max(1, queries * keys))
    rows = max(1, _CHUNK_LOGITS // max(1, keys))
    for b in range(0, batch, maps):
        for n in range(0, queries, rows):
            yield slice(b, b + maps), slice(n, n + rows)


def _refuse(*_: Any) -> dict[str, Any]:
    raise NotImplementedError(
        "attention_propagate: second derivatives are not implemented; "
        "tdnet_ops.reference.attention_propagate has them"
    )


OPERATORS = (
    Operator(
        "attention_propagate_backward",
        check_attention_propagate_backward,
        empty=_empty,
        per_sample=(),  # the gradient of the weight is one for the whole batch
        definition=in_chunks,
        gradient=_refuse,
        autocast=False,
        public=False,
    ),
)
