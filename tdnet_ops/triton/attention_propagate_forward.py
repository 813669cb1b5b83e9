"""attention_propagate_forward: attention_propagate, and what its backward pass needs of each query.

One number, the log-sum-exp of its scaled logits: the weights are exp(logits - log_sum_exp).
NaN for a row with +inf: not finite, as the row's softmax is NaN.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import Tensor

from tdnet_ops.operators import OPERATORS
from tdnet_ops.triton.attention_propagate import example_arguments, propagate
from tdnet_ops.triton.tuning.workloads import Inputs, Workload


def attention_propagate_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    residual: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
    *,
    allow_tf32: bool = False,
) -> tuple[Tensor, Tensor]:
    """The result [B, d_out, H, W], and the log-sum-exp of each query, [B, N] in float32.

    -inf for a row of -inf, NaN for one with NaN or inf: where the softmax is NaN.
    """
    operator = OPERATORS["attention_propagate_forward"]
    out, log_sum_exp = operator.result(q, k, v, residual, weight, bias)
    propagate(q, k, v, residual, weight, bias, scale, allow_tf32, out, log_sum_exp)
    return out, log_sum_exp


def workloads(inputs: Inputs) -> Iterator[Workload]:
    """Of each shape class, for tuning/."""
    for arguments in example_arguments(inputs):
        yield partial(attention_propagate_forward, *arguments, allow_tf32=inputs.allow_tf32)
