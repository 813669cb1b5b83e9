"""winograd_conv2d: 3x3 convolutions with a quarter of the multiplications."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tdnet_ops import checks, gradients, winograd
from tdnet_ops.layouts import empty_map
from tdnet_ops.operators.operator import Operator, call


def winograd_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    dilation: int = 1,
    activation: str = "none",
    *,
    backend: str | None = None,
) -> Tensor:
    """act(conv(x) + bias + residual) of 3x3 kernels, by Winograd's F(4x4, 3x3).

    The convolution has stride 1 and as much padding as dilation: the map keeps its size.

    The numbers on the way are larger than the result: in float32 it errs by up to 1e-5 of the
    largest result, about ten times as much as a direct convolution. A weight in half precision
    loses as much in proportion. Infinity and NaN spread over tiles of the result, 4x4 pixels.

    Args:
        x: [B, C, H, W].
        weight: [36, C_out, C], of `tdnet_ops.winograd_transform`.
        bias: [C_out].
        residual: [B, C_out, H, W], added before the activation.
        dilation: >= 1, in pixels.
        activation: "none" or "relu".

    Returns:
        [B, C_out, H, W], differentiable in all tensors.
    """
    dilation = checks.integer("dilation", dilation)
    checks.string("activation", activation)
    arguments = (x, weight, bias, residual, dilation, activation)
    return call(_OPERATOR, backend, ("x", x), arguments)


def check_winograd_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    dilation: int,
    activation: str,
) -> list[int]:
    checks.check_activation(activation)
    checks.check_feature_map("x", x)
    checks.check_has_pixels("x", x)
    checks.check_tensor("weight", weight, 3)
    checks.check_matches("weight", weight, "x", x)
    checks.check_size("weight", weight, 0, winograd.POSITIONS, "positions of a transformed tile")
    checks.check_size("weight", weight, 2, x.shape[1], "channels of x")
    checks.check_output_channels("weight", weight, 1)
    checks.check_positive("dilation", dilation)
    checks.check_most_pixels("dilation", dilation)
    shape = [x.shape[0], weight.shape[1], x.shape[2], x.shape[3]]
    checks.check_bias(bias, "x", x, shape[1])
    checks.check_residual(residual, "x", x, shape)
    return shape


def _save(ctx: Any, a: Any, output: Tensor) -> None:
    ctx.dilation, ctx.activation = a.dilation, a.activation
    ctx.has_residual, ctx.allow_tf32 = a.residual is not None, a.allow_tf32
    # The result is needed for the activation alone.
    ctx.save_for_backward(a.x, a.weight, a.bias, output if a.activation == "relu" else None)


def _gradient(ops: Any, ctx: Any, grad: Tensor) -> dict[str, Any]:
    x, weight, bias, output = ctx.saved_tensors
    grad = gradients.of_activation(grad, output, ctx.activation)
    with gradients.products_in(x, ctx.allow_tf32):
        sums = winograd.result_transposed(gradients.wide(grad), ctx.dilation)
        tiles = winograd.input_tiles(gradients.wide(x), ctx.dilation)
        grad_weight = winograd.products_of_weight(sums, tiles)
        grad_tiles = winograd.products(gradients.wide(weight).mT, sums)
    grad_x = winograd.input_tiles_transposed(grad_tiles, x.shape[2], x.shape[3], ctx.dilation)
    return {
        "x": grad_x.to(x.dtype),
        "weight": grad_weight.to(weight.dtype),
        "bias": gradients.of_bias(grad, bias),
        "residual": grad if ctx.has_residual else None,
    }


_OPERATOR = Operator(
    "winograd_conv2d",
    check_winograd_conv2d,
    empty=lambda a, shape: empty_map(a.x, shape),
    per_sample=("x", "residual"),
    save=_save,
    gradient=_gradient,
)
OPERATORS = (_OPERATOR,)
