"""Matrix products of tiles, and the online softmax that runs between two of them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Triton's interpreter multiplies bfloat16 wrongly: it gets float32, and only there.
_INTERPRETED: tl.constexpr = tl.constexpr(triton.knobs.runtime.interpret)


def precision(like: Tensor, allow_tf32: bool) -> str:
    """What tl.dot does with float32: full precision unless the user allows TF32."""
    return "tf32" if allow_tf32 and like.dtype == torch.float32 else "ieee"


@triton.jit
def multiply_add(a, b, total, PRECISION: tl.constexpr):
    """total + a b in float32; [m, k] by [k, n], each at least 16."""
    if _INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, total, input_precision=PRECISION)


@triton.jit
def softmax_step(logits, maximum, total):
    """One tile of an online softmax over rows (Milakov and Gimelshein, 2018).

    Args:
        logits: [rows, keys]; -inf weighs 0.
        maximum: [rows] of the tiles before, -inf at first.
        total: [rows], the sum of their weights, 0 at first.

    Returns:
        weights [rows, keys] relative to the new maximum, the factor [rows] that puts the sums
        before on the same footing, the new maximum and total. NaN spreads; a row that is -inf
        throughout keeps a total of 0.
    """
    larger = tl.maximum(maximum, tl.max(logits, 1))
    # exp(-inf - -inf) would be NaN where only the tiles so far are -inf.
    level = tl.where(larger == float("-inf"), 0.0, larger)
    weights = tl.exp(logits - level[:, None])
    rescale = tl.exp(maximum - level)
    return weights, rescale, larger, total * rescale + tl.sum(weights, 1)
