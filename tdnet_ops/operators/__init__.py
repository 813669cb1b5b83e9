"""The operators: a file each. A public one is imported here by name; the others are found."""

import importlib
import pkgutil

from tdnet_ops.operators.attention_propagate import attention_propagate
from tdnet_ops.operators.block_sum_reduce import block_sum_reduce
from tdnet_ops.operators.block_sum_update import block_sum_update
from tdnet_ops.operators.operator import Operator
from tdnet_ops.operators.pooled_affinity import pooled_affinity
from tdnet_ops.operators.softmax_propagate import softmax_propagate
from tdnet_ops.operators.spatial_pool import spatial_pool
from tdnet_ops.operators.upsample_argmax import upsample_argmax

__all__ = [
    "attention_propagate",
    "block_sum_reduce",
    "block_sum_update",
    "pooled_affinity",
    "softmax_propagate",
    "spatial_pool",
    "upsample_argmax",
]


def _all() -> dict[str, Operator]:
    found = {}
    for module in pkgutil.iter_modules(__path__):
        of_module = importlib.import_module(f"{__name__}.{module.name}")
        found.update({one.name: one for one in getattr(of_module, "OPERATORS", ())})
    return found


OPERATORS = _all()
