"""attention_propagate, Eq. 4 and 5 in one pass, and the form of it that its gradient needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from tdnet_ops import checks, folding, gradients
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
    heads: int = 1,
    *,
    return_log_sum_exp: bool = False,
    backend: str | None = None,
) -> Any:
    """phi(softmax(q k^T * scale) v) + residual in one pass, Eq. 4 and 5.

    The affinity is never stored. Each head attends with its own channels, and phi mixes heads.
    phi is folded into the values where that costs fewer operations (rows of a softmax sum to one);
    where gradients are wanted, where it leaves no more channels.
    The backward pass computes the affinity again, a tile at a time.

    Tokens [B, N, C] do as maps [B, C, 1, N], without a copy: q with residual and result, or k with
    v. Keys of several frames, k and v of [B, C, T, h, w], do as [B, C, T * h, w]. A batch of 1 goes
    with any: one query map reads the memories of several objects.

    Args:
        q: [B, heads * d_k, H, W].
        k: [B, heads * d_k, h, w], already pooled.
        v: [B, heads * d_v, h, w], already pooled.
        residual: [B, d_out, H, W], added last.
        weight: [d_out, heads * d_v] of phi, a bare 1x1 convolution; the identity if None.
        bias: [d_out] of phi.
        scale: 1 / sqrt(d_k) if None.
        heads: how many; 1 or more.
        return_log_sum_exp: also return, as a second tensor [B, heads, H, W] (of tokens
            [B, heads, N]) in float32 or wider, the logarithm of the sum over keys of
            exp(q k^T * scale): `tdnet_ops.merge` needs it.

    Returns:
        [B, d_out, H, W] in the layout of q, differentiable in all tensors, as the log-sum-exp is.
    """
    scale = checks.optional_number("scale", scale)
    heads = checks.integer("heads", heads)
    tokens = _rank(q) == 3
    q, residual, k, v = _as_map(q), _as_map(residual), _of_frames(k), _of_frames(v)
    q, k, v, residual = _in_one_batch(q, k, v, residual)
    operator = _FORWARD if return_log_sum_exp else _OPERATOR
    result = call(operator, backend, ("q", q), (q, k, v, residual, weight, bias, scale, heads))
    if not tokens:
        return result
    if not return_log_sum_exp:
        return result.squeeze(2).transpose(1, 2)
    return result[0].squeeze(2).transpose(1, 2), result[1].squeeze(2)


# What is no map, the checks below name: these let it pass as it is.


def _rank(x: Any) -> int:
    return x.dim() if isinstance(x, Tensor) and not x.is_nested else 0


def _as_map(x: Any) -> Any:
    """Tokens [B, N, C] -> [B, C, 1, N]."""
    return x.transpose(1, 2).unsqueeze(2) if _rank(x) == 3 else x


def _of_frames(x: Any) -> Any:
    """[B, C, T, h, w] -> [B, C, T * h, w]."""
    return x.flatten(2, 3) if _rank(x) == 5 else _as_map(x)


def _in_one_batch(*maps: Any) -> tuple[Any, ...]:
    """Those of batch 1 in the batch of the others, without a copy."""
    batch = 1
    for x in maps:
        if _rank(x) == 4 and x.shape[0] != 1:
            batch = x.shape[0]
    if batch == 1:
        return maps
    return tuple(
        x.expand(batch, -1, -1, -1) if _rank(x) == 4 and x.shape[0] == 1 else x for x in maps
    )


def check_attention_propagate(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    heads: int,
) -> list[int]:
    checks.check_queries_and_keys(q, k)
    checks.check_feature_map("v", v)
    checks.check_matches("v", v, "q", q)
    checks.check_size("v", v, 0, q.shape[0], "batch of q")
    checks.check_size("v", v, 2, k.shape[2], "height of k")
    checks.check_size("v", v, 3, k.shape[3], "width of k")
    checks.check_positive("heads", heads)
    checks.check_heads("q", q, heads)
    checks.check_heads("v", v, heads)
    return checks.check_projection("q", q, v.shape[1], q.shape[2:], residual, weight, bias)


def _empty_with_log_sum_exp(a: Any, shape: list[int]) -> tuple[Tensor, Tensor]:
    rows = a.q.new_empty([shape[0], a.heads, *shape[2:]], dtype=gradients.wide_dtype(a.q.dtype))
    return empty_map(a.q, shape), rows


def _compute(kernel: Callable[..., Any], a: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    """The result, the log-sum-exp, and A v where phi does not fold: its gradient needs A v."""
    if a.weight is not None:
        check_attention_propagate(a.q, a.k, a.v, a.residual, a.weight, a.bias, a.heads)
    if a.weight is None or folding.leaves_no_more_channels(
        a.heads, a.v.shape[1], a.weight.shape[0]
    ):
        return *kernel(*a[:-1], allow_tf32=a.allow_tf32), None
    attended, log_sum_exp = kernel(
        *(a.q, a.k, a.v, None, None, None, a.scale, a.heads), allow_tf32=a.allow_tf32
    )
    out = gradients.project(attended, a.weight, a.bias, a.residual, a.allow_tf32)
    return out, log_sum_exp, attended


def _save(ctx: Any, a: Any, outputs: tuple[Tensor, Tensor, Tensor | None]) -> None:
    ctx.has_residual, ctx.options = a.residual is not None, (a.scale, a.heads)
    ctx.allow_tf32 = a.allow_tf32
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(a.q, a.k, a.v, a.weight, a.bias, *outputs[1:])


def _gradient(
    ops: Any, ctx: Any, grad: Tensor | None, grad_log_sum_exp: Tensor | None
) -> dict[str, Any]:
    q, k, v, weight, bias, log_sum_exp, attended = ctx.saved_tensors
    if grad is None:
        channels = v.shape[1] if weight is None else weight.shape[0]
        grad = q.new_zeros(()).expand(q.shape[0], channels, *q.shape[2:])
    grad_attended, folded, grad_weight = grad, weight, None
    if attended is not None:
        grad_attended, grad_weight = gradients.of_projection(grad, attended, weight, ctx.allow_tf32)
        folded = None
    grad_q, grad_k, grad_v, grad_folded = ops(
        "attention_propagate_backward",
        *(grad_attended, grad_log_sum_exp, q, k, v, folded, log_sum_exp, *ctx.options),
        allow_tf32=ctx.allow_tf32,
    )
    return {
        "q": grad_q,
        "k": grad_k,
        "v": grad_v,
        "residual": grad if ctx.has_residual else None,
        "weight": grad_weight if folded is None else grad_folded,
        "bias": gradients.of_bias(grad, bias),
    }


_OPERATOR = Operator(
    "attention_propagate",
    check_attention_propagate,
    empty=lambda a, shape: empty_map(a.q, shape),
    per_sample=("q", "k", "v", "residual"),
    differentiated_by="attention_propagate_forward",
)
# Returns the log-sum-exp of each query's scaled logits too: the backward pass needs neither the
# maximum nor the sum of a row again. For a row with +inf it is +inf or NaN, by backend: not finite,
# as the row's softmax is NaN.
_FORWARD = Operator(
    "attention_propagate_forward",
    check_attention_propagate,
    empty=_empty_with_log_sum_exp,
    per_sample=("q", "k", "v", "residual"),
    compute=_compute,
    save=_save,
    gradient=_gradient,
    public=False,
)
OPERATORS = (_OPERATOR, _FORWARD)
