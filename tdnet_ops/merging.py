"""Attention over all keys from attention over parts of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def merge(results: Sequence[Tensor], log_sum_exps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """What attention_propagate gives for the keys of all parts, from what it gave for each part.

    A row's softmax over all keys weighs that of a part by the part's share of the sum of
    exponentials. A part of which a query sees no key (a log-sum-exp of -inf) adds nothing.

    Args:
        results: of the parts, [B, heads * d_v, H, W], or tokens [B, N, heads * d_v], without phi,
            bias and residual.
        log_sum_exps: of the parts, [B, heads, H, W], or [B, heads, N].

    Returns:
        The result and the log-sum-exp of all keys, of the same shapes; differentiable.

    Raises:
        ValueError: no part, or as many results as log-sum-exps there are not.
    """
    if len(results) == 0 or len(results) != len(log_sum_exps):
        raise ValueError(
            f"log_sum_exps: expected one of each of the results, of which there is at least one, "
            f"got {len(log_sum_exps)} for {len(results)}"
        )
    total = torch.stack(list(log_sum_exps)).logsumexp(0)
    merged = sum(
        _share(result, (part - total).exp())
        for result, part in zip(results, log_sum_exps, strict=True)
    )
    assert isinstance(merged, Tensor)
    return merged.to(results[0].dtype), total


def _share(result: Tensor, weights: Tensor) -> Tensor:
    """Each head's channels times its weight; 0, not NaN, where the weight is 0."""
    channels = 2 if result.dim() == 3 else 1
    if channels == 2:
        weights = weights.transpose(1, 2)
    weights = weights.repeat_interleave(result.shape[channels] // weights.shape[channels], channels)
    return torch.where(weights == 0, 0.0, result * weights)
