"""attention_propagate, Eq. 4 and 5 in one pass, and the form of it that its gradient needs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tdnet_ops import checks, gradients
from tdnet_ops.layouts import empty_map
from tdnet_ops.operators.operator import Operator, call


def attention_propagate(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    residual: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """phi(softmax(q k^T * scale) v) + residual in one pass, Eq. 4 and 5.

    The affinity is never stored.

    phi is folded into the values where that costs fewer operations (rows of a softmax sum to one).
    The backward pass recomputes the affinity in chunks.

    Args:
        q: [B, d_k, H, W].
        k: [B, d_k, h, w], already pooled.
        v: [B, d_v, h, w], already pooled.
        residual: [B, d_out, H, W], added last.
        weight: [d_out, d_v] of phi, a bare 1x1 convolution; the identity if None.
        bias: [d_out] of phi.
        scale: 1 / sqrt(d_k) if None.

    Returns:
        [B, d_out, H, W] in the layout of q, differentiable in all tensors.
    """
    scale = checks.optional_number("scale", scale)
    return call(_OPERATOR, backend, ("q", q), (q, k, v, residual, weight, bias, scale))


def check_attention_propagate(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
) -> list[int]:
    checks.check_queries_and_keys(q, k)
    checks.check_feature_map("v", v)
    checks.check_matches("v", v, "q", q)
    checks.check_size("v", v, 0, q.shape[0], "batch of q")
    checks.check_size("v", v, 2, k.shape[2], "height of k")
    checks.check_size("v", v, 3, k.shape[3], "width of k")
    return checks.check_projection("q", q, v.shape[1], q.shape[2:], residual, weight, bias)


def _empty_with_log_sum_exp(a: Any, shape: list[int]) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if a.q.dtype == torch.float64 else torch.float32
    return empty_map(a.q, shape), a.q.new_empty([shape[0], shape[2] * shape[3]], dtype=dtype)


def _save(ctx: Any, a: Any, outputs: tuple[Tensor, Tensor]) -> None:
    ctx.has_residual, ctx.scale, ctx.allow_tf32 = a.residual is not None, a.scale, a.allow_tf32
    ctx.mark_non_differentiable(outputs[1])
    ctx.save_for_backward(a.q, a.k, a.v, a.weight, a.bias, outputs[1])


def _gradient(ops: Any, ctx: Any, grad: Tensor, _: Any) -> dict[str, Any]:
    q, k, v, weight, bias, log_sum_exp = ctx.saved_tensors
    grad_q, grad_k, grad_v, grad_weight = ops(
        "attention_propagate_backward",
        *(grad, q, k, v, weight, log_sum_exp, ctx.scale),
        allow_tf32=ctx.allow_tf32,
    )
    return {
        "q": grad_q,
        "k": grad_k,
        "v": grad_v,
        "residual": grad if ctx.has_residual else None,
        "weight": None if weight is None else grad_weight,
        "bias": gradients.of_bias(grad, bias),
    }


_OPERATOR = Operator(
    "attention_propagate",
    check_attention_propagate,
    empty=lambda a, shape: empty_map(a.q, shape),
    per_sample=("q", "k", "v", "residual"),
    differentiated_by="attention_propagate_forward",
)
# Returns the log-sum-exp of each query's scaled logits too, [B, N]: the backward pass needs neither
# the maximum nor the sum of a row again. For a row with +inf it is +inf or NaN, by backend: not
# finite, as the row's softmax is NaN.
_FORWARD = Operator(
    "attention_propagate_forward",
    check_attention_propagate,
    empty=_empty_with_log_sum_exp,
    per_sample=("q", "k", "v", "residual"),
    save=_save,
    gradient=_gradient,
    public=False,
)
OPERATORS = (_OPERATOR, _FORWARD)
