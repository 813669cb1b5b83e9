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
def _exponent_above(total):
    """The bits of the least power of two that is not below `total`; of 0.0 for 0 and NaN."""
    return (total.to(tl.int32, bitcast=True) + 0x7FFFFF) & 0x7F800000


@triton.jit
def _share(total, WIDE: tl.constexpr):
    """A power of two, [rows]: `total` times it lies in (1/2, 1]. 1 where the sums are not WIDE."""
    share = tl.full(total.shape, 1.0, tl.float32)
    if WIDE:
        share = (0x7F000000 - _exponent_above(total)).to(tl.float32, bitcast=True)
    return share


@triton.jit
def softmax_step(logits, maximum, total, WIDE: tl.constexpr):
    """One tile of an online softmax over rows (Milakov and Gimelshein, 2018).

    Sums of weights times values must not overflow where their mean does not: WIDE weights sum to
    at most 1 at any time. They are divided by a power of two, so that nothing is rounded, and not
    by the total itself. float16 needs none of it, a sum of its numbers fits into float32, and
    would lose the small weights.

    tl.exp keeps results below the least normal number (ex2.approx without .ftz; its like on
    AMD), and so do the products: a weight is 0 from exp(-104) on, as torch's.

    Args:
        logits: [rows, keys]; -inf weighs 0.
        maximum: [rows] of the tiles before, -inf at first.
        total: [rows], the sum of their weights relative to `maximum`, 0 at first.
        WIDE: the values have the range of float32.

    Returns:
        weights [rows, keys] relative to the new maximum, the factor [rows] that puts the sums
        before on the same footing, the new maximum and total. NaN spreads; a row that is -inf
        throughout keeps a total of 0. After the last tile see `softmax_divisor`.
    """
    larger = tl.maximum(maximum, tl.max(logits, 1))
    # exp(-inf - -inf) would be NaN where only the tiles so far are -inf.
    level = tl.where(larger == float("-inf"), 0.0, larger)
    weights = tl.exp(logits - level[:, None])
    rescale = tl.exp(maximum - level)
    new_total = total * rescale + tl.sum(weights, 1)
    if WIDE:
        share = _share(new_total, WIDE)
        weights = weights * share[:, None]
        rescale = rescale * (share * _exponent_above(total).to(tl.float32, bitcast=True))
    return weights, rescale, larger, new_total


@triton.jit
def softmax_divisor(total, WIDE: tl.constexpr):
    """What turns the sums of weights times values into means, [rows]."""
    return total * _share(total, WIDE)
