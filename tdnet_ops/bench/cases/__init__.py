"""The table of cases: one file an operator, each with a tuple `CASES`."""

from tdnet_ops.bench.case import Case
from tdnet_ops.bench.cases import (
    attention_propagate,
    block_sum_reduce,
    block_sum_update,
    pooled_affinity,
    softmax_propagate,
    spatial_pool,
    upsample_argmax,
)

CASES: tuple[Case, ...] = (
    *attention_propagate.CASES,
    *pooled_affinity.CASES,
    *softmax_propagate.CASES,
    *spatial_pool.CASES,
    *block_sum_reduce.CASES,
    *block_sum_update.CASES,
    *upsample_argmax.CASES,
)
