"""block_sum_reduce: act(sum_i conv_i(x_i) + bias), the dimension reduction of Sec. 3.1."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from tdnet_ops.triton.shared import convolve
from tdnet_ops.triton.tuning.workloads import Arguments, Inputs


def block_sum_reduce(
    blocks: Sequence[Tensor],
    weights: Sequence[Tensor],
    bias: Tensor | None,
    padding: int,
    dilation: int,
    activation: str,
    allow_tf32: bool,
    *,
    out: Tensor,
) -> None:
    """One launch; the blocks are never concatenated."""
    convolve.sum_convolutions(
        blocks,
        weights,
        total=out,
        bias=bias,
        padding=padding,
        dilation=dilation,
        relu=activation == "relu",
        allow_tf32=allow_tf32,
    )


def workloads(inputs: Inputs) -> Iterator[Arguments]:
    """Calls of each shape class, for tuning/."""
    blocks = [inputs.queries(128) for _ in range(4)]
    for side in (1, 3):
        for out_channels in (64, 512):
            weights = [inputs.weight(out_channels, 128, side, side) for _ in blocks]
            yield blocks, weights, None, side // 2, 1, "none"
