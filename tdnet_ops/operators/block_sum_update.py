"""block_sum_update, the dimension reduction of Sec. 3.1 in a stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from tdnet_ops import _library, checks, gradients
from tdnet_ops.layouts import empty_map
from tdnet_ops.operators.operator import Operator, call


def block_sum_update(
    partials: Sequence[Tensor],
    index: int,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    padding: int = 0,
    dilation: int = 1,
    activation: str = "none",
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Sec. 3.1 in a stream: one block is new, the others' partial results are kept.

    The partials are summed in the order of the list each time, so nothing drifts over a long
    stream.

    Args:
        partials: maps [B, C_out, H', W'], one a block; partials[index] is not read and may be any
            tensor.
        index: which block is new.
        x: its input [B, C_i, H, W].
        weight: its weights [C_out, C_i, k, k], k = 1 or 3.
        bias: [C_out], added to the sum.
        padding: zeros around the map, >= 0, in pixels.
        dilation: >= 1, in pixels.
        activation: "none" or "relu", applied to the sum.

    Returns:
        The new partial (no bias, no activation) and the sum, both [B, C_out, H', W'],
        differentiable in all tensors.
    """
    checks.tensor_list("partials", partials)
    index = checks.integer("index", index)
    padding = checks.integer("padding", padding)
    dilation = checks.integer("dilation", dilation)
    checks.string("activation", activation)
    # The dispatcher looks at every tensor: one of another device in the place that is not read
    # would mislead it. Detached, since compiled autograd fails to add a gradient that is None.
    if isinstance(x, Tensor):
        partials = [x.detach() if i == index else partial for i, partial in enumerate(partials)]
    arguments = (partials, index, x, weight, bias, padding, dilation, activation)
    return call(_OPERATOR, backend, ("x", x), arguments)


def check_block_sum_update(
    partials: Sequence[Tensor],
    index: int,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: int,
    dilation: int,
    activation: str,
) -> list[int]:
    checks.check_not_empty("partials", partials)
    if not 0 <= index < len(partials):
        raise ValueError(
            f"index: expected 0 to {len(partials) - 1}, a place in partials, got {index}"
        )
    checks.check_activation(activation)
    shape = checks.check_convolution("x", x, "weight", weight, padding, dilation)
    for i, partial in enumerate(partials):
        if i == index:
            continue
        checks.check_feature_map(f"partials[{i}]", partial)
        checks.check_matches(f"partials[{i}]", partial, "x", x)
        for dim, what in enumerate(("batch", "channels", "height", "width")):
            source = f"{what} of the new partial"
            checks.check_size(f"partials[{i}]", partial, dim, shape[dim], source)
    checks.check_bias(bias, "x", x, weight.shape[0])
    return shape


def _save(ctx: Any, a: Any, outputs: tuple[Tensor, Tensor]) -> None:
    ctx.count, ctx.index = len(a.partials), a.index
    ctx.padding, ctx.dilation, ctx.activation = a.padding, a.dilation, a.activation
    ctx.allow_tf32 = a.allow_tf32
    ctx.save_for_backward(a.x, a.weight, a.bias, outputs[1])
    ctx.set_materialize_grads(False)


def _gradient(
    ops: Any, ctx: Any, grad_partial: Tensor | None, grad_total: Tensor | None
) -> dict[str, Any]:
    x, weight, bias, total = ctx.saved_tensors
    grad_bias = None
    if grad_total is not None:
        grad_total = gradients.of_activation(grad_total, total, ctx.activation)
        grad_bias = gradients.of_bias(grad_total, bias)
    grad_partials = [None if i == ctx.index else grad_total for i in range(ctx.count)]
    grads = [gradients.wide(grad) for grad in (grad_partial, grad_total) if grad is not None]
    if not grads:
        return {"partials": grad_partials}
    grad_x, grad_weight = gradients.of_convolution(
        sum(grads[1:], grads[0]), x, weight, ctx.padding, ctx.dilation, ctx.allow_tf32
    )
    return {"partials": grad_partials, "x": grad_x, "weight": grad_weight, "bias": grad_bias}


def _cuda_limit(a: Any) -> str | None:
    most = _library.CUDA_MOST_PARTIALS
    if len(a.partials) <= most:
        return None
    count = len(a.partials)
    return f"partials: expected at most {most}, as many as the CUDA kernel sums, got {count}"


_OPERATOR = Operator(
    "block_sum_update",
    check_block_sum_update,
    empty=lambda a, shape: (empty_map(a.x, shape), empty_map(a.x, shape)),
    per_sample=("partials", "x"),
    save=_save,
    gradient=_gradient,
    limits={"cuda": _cuda_limit},
)
OPERATORS = (_OPERATOR,)
