"""block_sum_update: the new partial of one block, and act(sum of partials + bias), Sec. 3.1."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from tdnet_ops.triton.shared import convolve
from tdnet_ops.triton.tuning.workloads import Arguments, Inputs


def block_sum_update(
    partials: Sequence[Tensor],
    index: int,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: int,
    dilation: int,
    activation: str,
    allow_tf32: bool,
    *,
    out: tuple[Tensor, Tensor],
) -> None:
    """One launch writes both; the sum has the order of the list."""
    new_partial, total = out
    convolve.sum_convolutions(
        [x],
        [weight],
        total=total,
        partial=new_partial,
        addends=[addend for i, addend in enumerate(partials) if i != index],
        index=index,
        bias=bias,
        padding=padding,
        dilation=dilation,
        relu=activation == "relu",
        allow_tf32=allow_tf32,
    )


def workloads(inputs: Inputs) -> Iterator[Arguments]:
    """Calls of each shape class, for tuning/."""
    x = inputs.queries(128)
    for side in (1, 3):
        for out_channels in (64, 512):
            partials = [inputs.queries(out_channels) for _ in range(4)]
            weight = inputs.weight(out_channels, 128, side, side)
            yield partials, 1, x, weight, None, side // 2, 1, "none"
