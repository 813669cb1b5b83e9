"""upsample_argmax: labels of full size from logits, which never exist at that size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tdnet_ops import checks
from tdnet_ops.operators.operator import Operator, call


def upsample_argmax(
    logits: Tensor,
    size: Sequence[int],
    align_corners: bool = False,
    dtype: torch.dtype = torch.uint8,
    *,
    backend: str | None = None,
) -> Tensor:
    """Bilinear upsampling, then arg max over the classes; the full-size logits never exist.

    The lowest class wins a tie; NaN is larger than any number (as torch.argmax). Not
    differentiable.

    Args:
        logits: [B, K, H, W].
        size: (H', W') of the result, larger or smaller than the map.
        align_corners: as in torch.nn.functional.interpolate.
        dtype: torch.uint8 (K <= 256) or torch.int64.

    Returns:
        [B, H', W'] labels.
    """
    size = checks.two_integers("size", size)
    checks.boolean("align_corners", align_corners)
    checks.label_dtype("dtype", dtype)
    return call(_OPERATOR, backend, ("logits", logits), (logits, size, align_corners, dtype))


def check_upsample_argmax(
    logits: Tensor, size: Sequence[int], dtype: torch.dtype | None
) -> list[int]:
    checks.check_feature_map("logits", logits)
    checks.check_has_pixels("logits", logits)
    checks.check_output_size(size)
    dtype = label_dtype(dtype)
    checks.check_choice("dtype", dtype, checks.LABELS)
    if dtype == torch.uint8 and logits.shape[1] > 256:
        raise ValueError(
            f"dtype: expected torch.int64 for logits of {logits.shape[1]} classes, got torch.uint8"
        )
    return [logits.shape[0], size[0], size[1]]


def label_dtype(dtype: torch.dtype | None) -> torch.dtype:
    return torch.uint8 if dtype is None else dtype


def _empty(a: Any, shape: list[int]) -> Tensor:
    return a.logits.new_empty(shape, dtype=label_dtype(a.dtype))


_OPERATOR = Operator(
    "upsample_argmax",
    check_upsample_argmax,
    empty=_empty,
    per_sample=("logits",),
    autocast=False,
)
OPERATORS = (_OPERATOR,)
