"""Fused attention-propagation operators over feature maps, for PyTorch."""

from tdnet_ops import nn, operators, registration  # noqa: F401  registration gives them to torch
from tdnet_ops.backends import backend
from tdnet_ops.definitions import decompositions
from tdnet_ops.extra_channels import (
    with_key_bias,
    with_l2_similarity,
    with_relative_positions,
    with_shrinkage_and_selection,
)
from tdnet_ops.info import build_info
from tdnet_ops.merging import merge
from tdnet_ops.operators import *  # noqa: F403  the public functions
from tdnet_ops.pooling import pool
from tdnet_ops.top_k import top_k_propagate
from tdnet_ops.version import __version__
from tdnet_ops.winograd import winograd_transform

__all__ = [
    "__version__",
    "backend",
    "build_info",
    "decompositions",
    "merge",
    "pool",
    "top_k_propagate",
    "winograd_transform",
    "with_key_bias",
    "with_l2_similarity",
    "with_relative_positions",
    "with_shrinkage_and_selection",
]
__all__ += operators.__all__
