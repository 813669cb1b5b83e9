"""Fused attention-propagation operators over feature maps, for PyTorch."""

from tdnet_ops import registration  # noqa: F401  gives the operators to torch
from tdnet_ops.backends import backend
from tdnet_ops.info import build_info
from tdnet_ops.operators import (
    attention_propagate,
    block_sum_reduce,
    block_sum_update,
    pooled_affinity,
    softmax_propagate,
    spatial_pool,
    upsample_argmax,
)
from tdnet_ops.version import __version__

__all__ = [
    "__version__",
    "attention_propagate",
    "backend",
    "block_sum_reduce",
    "block_sum_update",
    "build_info",
    "pooled_affinity",
    "softmax_propagate",
    "spatial_pool",
    "upsample_argmax",
]
