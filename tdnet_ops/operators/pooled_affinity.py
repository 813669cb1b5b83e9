"""pooled_affinity, the logits of Eq. 1 against pooled keys."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tdnet_ops import checks, gradients
from tdnet_ops.operators.operator import Operator, call
from tdnet_ops.operators.spatial_pool import unpool


def pooled_affinity(
    q: Tensor,
    k: Tensor,
    stride: int = 1,
    mode: str = "max",
    scale: float | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """The logits of Eq. 1 against pooled keys: q gamma_n(k)^T * scale.

    Args:
        q: [B, d_k, H, W].
        k: [B, d_k, H_k, W_k], not yet pooled.
        stride: n >= 1 of the pooling; 1 leaves k as it is.
        mode: "max" or "subsample", see `spatial_pool`.
        scale: 1 / sqrt(d_k) if None.

    Returns:
        [B, N, M] with M = ceil(H_k/n) * ceil(W_k/n), contiguous, differentiable in q and k.
    """
    stride = checks.integer("stride", stride)
    checks.string("mode", mode)
    scale = checks.optional_number("scale", scale)
    return call(_OPERATOR, backend, ("q", q), (q, k, stride, mode, scale))


def check_pooled_affinity(q: Tensor, k: Tensor, stride: int, mode: str) -> list[int]:
    checks.check_queries_and_keys(q, k)
    checks.check_pooling(stride, mode)
    height, width = checks.pooled_size(k, stride)
    return [q.shape[0], q.shape[2] * q.shape[3], height * width]


def _save(ctx: Any, a: Any, output: Tensor) -> None:
    ctx.stride, ctx.mode, ctx.scale, ctx.allow_tf32 = a.stride, a.mode, a.scale, a.allow_tf32
    ctx.save_for_backward(a.q, a.k)


def _gradient(ops: Any, ctx: Any, grad: Tensor) -> dict[str, Any]:
    q, k = ctx.saved_tensors
    pooled = ops("spatial_pool", k, ctx.stride, ctx.mode)
    scaled = gradients.wide(grad) * gradients.scale_of(q, ctx.scale)
    with gradients.products_in(q, ctx.allow_tf32):
        grad_q = scaled @ gradients.tokens(gradients.wide(pooled))
        grad_pooled = scaled.transpose(1, 2) @ gradients.tokens(gradients.wide(q))
    return {
        "q": gradients.as_map(grad_q, q),
        "k": unpool(gradients.as_map(grad_pooled, pooled), k, ctx.stride, ctx.mode),
    }


_OPERATOR = Operator(
    "pooled_affinity",
    check_pooled_affinity,
    empty=lambda a, shape: a.q.new_empty(shape),
    per_sample=("q", "k"),
    save=_save,
    gradient=_gradient,
)
OPERATORS = (_OPERATOR,)
