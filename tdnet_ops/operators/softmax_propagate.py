"""softmax_propagate, Eq. 4 and 5 with the logits given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from tdnet_ops import checks, gradients
from tdnet_ops.layouts import empty_map
from tdnet_ops.operators.operator import Operator, call


def softmax_propagate(
    affinity: Tensor,
    v: Tensor,
    size: Sequence[int],
    residual: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """phi(softmax(affinity) v) + residual, Eq. 4 and 5 with the logits given.

    As torch's softmax: a -inf logit weighs 0, a row of -inf gives NaN, NaN propagates.

    Args:
        affinity: [B, N, M] logits.
        v: [B, d_v, h, w].
        size: (H, W) with H * W = N.
        residual: [B, d_out, H, W], added last.
        weight: [d_out, d_v] of phi, a bare 1x1 convolution; the identity if None.
        bias: [d_out] of phi.

    Returns:
        [B, d_out, H, W] in the layout of residual, else of v; differentiable in all tensors.
    """
    size = checks.two_integers("size", size)
    arguments = (affinity, v, size, residual, weight, bias)
    return call(_OPERATOR, backend, ("affinity", affinity), arguments)


def check_softmax_propagate(
    affinity: Tensor,
    v: Tensor,
    size: Sequence[int],
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
) -> list[int]:
    checks.check_tensor("affinity", affinity, 3)
    checks.check_feature_map("v", v)
    checks.check_matches("v", v, "affinity", affinity)
    checks.check_has_pixels("v", v)
    checks.check_size("v", v, 0, affinity.shape[0], "batch of affinity")
    checks.check_size("affinity", affinity, 2, v.shape[2] * v.shape[3], "keys: pixels of v")
    checks.check_output_size(size)
    if size[0] * size[1] != affinity.shape[1]:
        raise ValueError(
            f"size: expected height x width = {affinity.shape[1]}, the queries of affinity, "
            f"got {tuple(size)}"
        )
    return checks.check_projection("affinity", affinity, v.shape[1], size, residual, weight, bias)


def _save(ctx: Any, a: Any, output: Tensor) -> None:
    ctx.has_residual, ctx.allow_tf32 = a.residual is not None, a.allow_tf32
    ctx.save_for_backward(a.affinity, a.v, a.weight, a.bias)


def _gradient(ops: Any, ctx: Any, grad: Tensor) -> dict[str, Any]:
    affinity, v, weight, bias = ctx.saved_tensors
    grad_tokens = gradients.tokens(gradients.wide(grad))
    weights = gradients.wide(affinity).softmax(-1)
    with gradients.products_in(v, ctx.allow_tf32):
        grad_weights = grad_tokens @ gradients.fold(v, weight).transpose(1, 2)
        grad_values = weights.transpose(1, 2) @ grad_tokens
        grad_v, grad_weight = gradients.unfold(grad_values, v, weight)
    return {
        "affinity": gradients.of_softmax(weights, grad_weights).to(affinity.dtype),
        "v": grad_v,
        "residual": grad if ctx.has_residual else None,
        "weight": grad_weight,
        "bias": gradients.of_bias(grad, bias),
    }


_OPERATOR = Operator(
    "softmax_propagate",
    check_softmax_propagate,
    empty=lambda a, shape: empty_map(a.v if a.residual is None else a.residual, shape),
    per_sample=("affinity", "v", "residual"),
    save=_save,
    gradient=_gradient,
)
OPERATORS = (_OPERATOR,)
