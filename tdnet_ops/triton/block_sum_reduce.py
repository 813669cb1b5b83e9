"""block_sum_reduce: act(sum_i conv_i(x_i) + bias), the dimension reduction of Sec. 3.1."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tdnet_ops import checks
from tdnet_ops.triton import convolve


def block_sum_reduce(
    blocks: Sequence[Tensor],
    weights: Sequence[Tensor],
    bias: Tensor | None,
    padding: int,
    dilation: int,
    activation: str,
    *,
    allow_tf32: bool = False,
) -> Tensor:
    """As tdnet_ops.block_sum_reduce: one launch, the blocks are never concatenated."""
    checks.block_sum_reduce(blocks, weights, bias, padding, dilation, activation)
    out = convolve.convolved_map(blocks[0], weights[0], padding, dilation)
    convolve.run(
        blocks,
        weights,
        total=out,
        bias=bias,
        padding=padding,
        dilation=dilation,
        relu=activation == "relu",
        allow_tf32=allow_tf32,
    )
    return out
