"""block_sum_update: the new partial of one block, and act(sum of partials + bias), Sec. 3.1."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tdnet_ops import checks
from tdnet_ops.triton import convolve


def block_sum_update(
    partials: Sequence[Tensor],
    index: int,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: int,
    dilation: int,
    activation: str,
    *,
    allow_tf32: bool = False,
) -> tuple[Tensor, Tensor]:
    """As tdnet_ops.block_sum_update: one launch writes both; the sum has the order of the list."""
    checks.block_sum_update(partials, index, x, weight, bias, padding, dilation, activation)
    partial, total = (convolve.convolved_map(x, weight, padding, dilation) for _ in range(2))
    convolve.run(
        [x],
        [weight],
        total=total,
        partial=partial,
        addends=[addend for i, addend in enumerate(partials) if i != index],
        index=index,
        bias=bias,
        padding=padding,
        dilation=dilation,
        relu=activation == "relu",
        allow_tf32=allow_tf32,
    )
    return partial, total
