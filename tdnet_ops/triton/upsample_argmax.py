"""upsample_argmax: bilinear upsampling, then arg max over the classes; the maps never exist.

A program makes ROWS x COLUMNS labels: it walks over the classes, blends the four logits around each
place, and keeps the best. Neighbouring labels read the same logits, which the cache holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import triton
import triton.language as tl
from torch import Tensor

from tdnet_ops.triton.shared import launch, maps
from tdnet_ops.triton.tuning.table import Configuration
from tdnet_ops.triton.tuning.workloads import Arguments, Inputs


@triton.jit
def source(position, size, out_size, scale, ALIGN_CORNERS: tl.constexpr):
    """The two rows or columns of logits that a label lies between, and the share of the second.

    torch's rule, in float32 as there.
    """
    if ALIGN_CORNERS:
        at = position.to(tl.float32) * scale
    else:
        at = tl.maximum(tl.fma(position.to(tl.float32) + 0.5, scale, -0.5), 0.0)
    low = tl.minimum(at.to(tl.int32), size - 1)
    share = tl.minimum(tl.maximum(at - low.to(tl.float32), 0.0), 1.0)
    # No neighbour of weight zero is read: an infinity or a NaN there would spread.
    same = size == out_size
    low = tl.where(same, position, low)
    high = tl.where(same, position, tl.minimum(low + 1, size - 1))
    return low, high, tl.where(same, 0.0, share)


@triton.jit
def upsample(
    logits,  # map [B, classes, height, width]
    labels,  # [B, out_height, out_width], contiguous
    classes,
    height,
    width,
    out_height,
    out_width,
    row_scale,
    column_scale,
    ALIGN_CORNERS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    across = tl.cdiv(out_width, COLUMNS)
    down = tl.cdiv(out_height, ROWS)
    program = tl.program_id(0)
    x = program % across * COLUMNS + tl.arange(0, COLUMNS)
    y = program // across % down * ROWS + tl.arange(0, ROWS)
    b = (program // across // down).to(tl.int64)
    # Places beyond the map read as the last one does.
    top, bottom, y_share = source(
        tl.minimum(y, out_height - 1), height, out_height, row_scale, ALIGN_CORNERS
    )
    left, right, x_share = source(
        tl.minimum(x, out_width - 1), width, out_width, column_scale, ALIGN_CORNERS
    )
    upper = logits.data + b * logits.batch + top.to(tl.int64) * logits.row
    lower = logits.data + b * logits.batch + bottom.to(tl.int64) * logits.row
    left = left.to(tl.int64) * logits.column
    right = right.to(tl.int64) * logits.column
    y_share = y_share[:, None]
    x_share = x_share[None, :]

    best = tl.full([ROWS, COLUMNS], float("-inf"), tl.float32)
    label = tl.zeros([ROWS, COLUMNS], tl.int32)
    for c in range(0, classes):
        at = tl.cast(c, tl.int64) * logits.channel
        # The same roundings for every class: equal logits stay equal.
        above = _blend(upper, left, right, at, x_share)
        below = _blend(lower, left, right, at, x_share)
        logit = tl.fma(below, y_share, above * (1.0 - y_share))
        # NaN is the largest; the first of equals stays.
        better = ((logit > best) | (logit != logit)) & (best == best)
        best = tl.where(better, logit, best)
        label = tl.where(better, c, label)

    offset = (b * out_height + y)[:, None] * out_width + x[None, :]
    inside = (y < out_height)[:, None] & (x < out_width)[None, :]
    tl.store(labels + offset, label.to(labels.dtype.element_ty), mask=inside)


@triton.jit
def _blend(row, left, right, at, share):
    a = tl.load(row[:, None] + (at + left)[None, :]).to(tl.float32)
    b = tl.load(row[:, None] + (at + right)[None, :]).to(tl.float32)
    return tl.fma(b, share, a * (1.0 - share))


def upsample_argmax(
    logits: Tensor, size: Sequence[int], align_corners: bool, *, out: Tensor
) -> None:
    batch, classes, height, width = logits.shape
    if out.numel() == 0:
        return
    launch.launch(
        upsample,
        logits,
        f"any{launch.strided(logits)}",
        _CANDIDATES,
        lambda tile: (
            batch * launch.cdiv(size[0], tile["ROWS"]) * launch.cdiv(size[1], tile["COLUMNS"])
        ),
        logits=maps.pixels(logits),
        labels=out,
        classes=classes,
        height=height,
        width=width,
        out_height=size[0],
        out_width=size[1],
        row_scale=_scale(height, size[0], align_corners),
        column_scale=_scale(width, size[1], align_corners),
        ALIGN_CORNERS=align_corners,
    )


def _scale(size: int, out_size: int, align_corners: bool) -> float:
    """Rows or columns of logits to one of labels."""
    if not align_corners:
        return size / out_size
    return (size - 1) / (out_size - 1) if out_size > 1 else 0.0


_CANDIDATES: list[Configuration] = [
    {"ROWS": rows, "COLUMNS": columns, "num_warps": 4}
    for rows, columns in ((8, 64), (4, 64), (8, 128), (16, 32))
]


def workloads(inputs: Inputs) -> Iterator[Arguments]:
    """Calls of each shape class, for tuning/."""
    yield inputs.queries(19), [769, 1537]
