"""attention_propagate_backward: gradients of q, k, v and phi, the affinity recomputed in chunks."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tdnet_ops import gradients
from tdnet_ops.operators.operator import Operator

# Logits held at once: 16 MB of float32.
_CHUNK_LOGITS = 1 << 22


def _check_nothing(q: Tensor) -> None:
    """Autograd alone calls it."""


def _empty(a: Any, _: None) -> tuple[Tensor, ...]:
    grad_weight = a.q.new_empty(0) if a.weight is None else a.weight.new_empty(a.weight.shape)
    return *(x.new_empty(x.shape) for x in (a.q, a.k, a.v)), grad_weight


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
    with gradients.products_in(q, allow_tf32):
        values = gradients.fold(v, weight, heads)
        queries, keys, grad_tokens = (gradients.tokens(x, heads) for x in (q, k, grad))
        of_log_sum_exp = (
            None if grad_log_sum_exp is None else grad_log_sum_exp.reshape(log_sum_exp.shape)
        )
        grad_queries = torch.empty_like(queries)
        grad_keys, grad_values = torch.zeros_like(keys), torch.zeros_like(values)
        chunk = max(1, _CHUNK_LOGITS // max(1, keys.shape[0] * keys.shape[1]))
        for first in range(0, queries.shape[1], chunk):
            some = slice(first, first + chunk)
            query, grad_out = queries[:, some], grad_tokens[:, some]
            # In place: what stands here at once is three times _CHUNK_LOGITS.
            weights = (query @ keys.transpose(1, 2)).mul_(scale)
            weights.sub_(log_sum_exp[:, some, None]).exp_()
            grad_values += weights.transpose(1, 2) @ grad_out
            grad_logits = grad_out @ values.transpose(1, 2)
            shift = (grad_logits * weights).sum(-1, keepdim=True)
            if of_log_sum_exp is not None:
                shift -= of_log_sum_exp[:, some, None]
            grad_logits -= shift
            grad_logits *= weights
            grad_logits *= scale
            grad_queries[:, some] = grad_logits @ keys
            grad_keys += grad_logits.transpose(1, 2) @ query
        grad_v, grad_weight = gradients.unfold(grad_values, v, weight)
    return (
        gradients.as_map(grad_queries, q),
        gradients.as_map(grad_keys, k),
        grad_v,
        q.new_empty(0) if grad_weight is None else grad_weight,
    )


def _refuse(*_: Any) -> dict[str, Any]:
    raise NotImplementedError(
        "attention_propagate: second derivatives are not implemented; "
        "tdnet_ops.reference.attention_propagate has them"
    )


OPERATORS = (
    Operator(
        "attention_propagate_backward",
        _check_nothing,
        empty=_empty,
        per_sample=(),  # the gradient of the weight is one for the whole batch
        definition=in_chunks,
        gradient=_refuse,
        autocast=False,
        public=False,
    ),
)
