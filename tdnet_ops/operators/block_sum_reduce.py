"""block_sum_reduce, the dimension reduction of Sec. 3.1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from tdnet_ops import checks, gradients
from tdnet_ops.layouts import empty_map
from tdnet_ops.operators.operator import Operator, call


def block_sum_reduce(
    blocks: Sequence[Tensor],
    weights: Sequence[Tensor],
    bias: Tensor | None = None,
    padding: int = 0,
    dilation: int = 1,
    activation: str = "none",
    *,
    backend: str | None = None,
) -> Tensor:
    """The dimension reduction of Sec. 3.1: act(sum_i conv_i(x_i) + bias).

    The blocks are never concatenated.

    Args:
        blocks: maps [B, C_i, H, W].
        weights: one [C_out, C_i, k, k] a block, k = 1 or 3.
        bias: [C_out].
        padding: zeros around the map, >= 0, in pixels.
        dilation: >= 1, in pixels.
        activation: "none" or "relu".

    Returns:
        [B, C_out, H', W'] with H' = H + 2*padding - dilation*(k-1), differentiable in all tensors.
    """
    checks.tensor_list("blocks", blocks)
    checks.tensor_list("weights", weights)
    checks.check_not_empty("blocks", blocks)
    padding = checks.integer("padding", padding)
    dilation = checks.integer("dilation", dilation)
    checks.string("activation", activation)
    arguments = (blocks, weights, bias, padding, dilation, activation)
    return call(_OPERATOR, backend, ("blocks[0]", blocks[0]), arguments)


def check_block_sum_reduce(
    blocks: Sequence[Tensor],
    weights: Sequence[Tensor],
    bias: Tensor | None,
    padding: int,
    dilation: int,
    activation: str,
) -> list[int]:
    checks.check_not_empty("blocks", blocks)
    if len(weights) != len(blocks):
        raise ValueError(f"weights: expected {len(blocks)}, one a block, got {len(weights)}")
    checks.check_activation(activation)
    for i, (x, weight) in enumerate(zip(blocks, weights, strict=True)):
        # Before its weight, which would be blamed for it.
        checks.check_feature_map(f"blocks[{i}]", x)
        checks.check_matches(f"blocks[{i}]", x, "blocks[0]", blocks[0])
        for dim, what in ((0, "batch"), (2, "height"), (3, "width")):
            expected = blocks[0].shape[dim]
            checks.check_size(f"blocks[{i}]", x, dim, expected, f"{what} of blocks[0]")
        shape = checks.check_convolution(
            f"blocks[{i}]", x, f"weights[{i}]", weight, padding, dilation
        )
        for dim, what in ((0, "output channels"), (2, "kernel")):
            expected = weights[0].shape[dim]
            checks.check_size(f"weights[{i}]", weight, dim, expected, f"{what} of weights[0]")
    checks.check_bias(bias, "blocks[0]", blocks[0], weights[0].shape[0])
    return shape


def _save(ctx: Any, a: Any, output: Tensor) -> None:
    ctx.padding, ctx.dilation, ctx.activation = a.padding, a.dilation, a.activation
    ctx.allow_tf32 = a.allow_tf32
    ctx.save_for_backward(*a.blocks, *a.weights, a.bias, output)


def _gradient(ops: Any, ctx: Any, grad: Tensor) -> dict[str, Any]:
    *maps, bias, output = ctx.saved_tensors
    count = len(maps) // 2
    grad = gradients.of_activation(grad, output, ctx.activation)
    pairs = [
        gradients.of_convolution(grad, x, weight, ctx.padding, ctx.dilation, ctx.allow_tf32)
        for x, weight in zip(maps[:count], maps[count:], strict=True)
    ]
    return {
        "blocks": [pair[0] for pair in pairs],
        "weights": [pair[1] for pair in pairs],
        "bias": gradients.of_bias(grad, bias),
    }


_OPERATOR = Operator(
    "block_sum_reduce",
    check_block_sum_reduce,
    empty=lambda a, shape: empty_map(a.blocks[0], shape),
    per_sample=("blocks",),
    save=_save,
    gradient=_gradient,
)
OPERATORS = (_OPERATOR,)
