"""attention_propagate_forward: attention_propagate, and what its backward pass needs of each query.

One number, the log-sum-exp of its scaled logits: the weights are exp(logits - log_sum_exp).
-inf for a row of -inf; NaN for a row with +inf: not finite, as the row's softmax is NaN.
"""

from __future__ import annotations

from torch import Tensor

from tdnet_ops.triton import attention_propagate
from tdnet_ops.triton.attention_propagate import workloads as workloads


def attention_propagate_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: float | None,
    heads: int,
    allow_tf32: bool,
    *,
    out: tuple[Tensor, Tensor],
) -> None:
    attention_propagate.attention_propagate(
        *(q, k, v, residual, weight, bias, scale, heads, allow_tf32), out=out[0], log_sum_exp=out[1]
    )
