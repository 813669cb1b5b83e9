"""Triton kernels of every operator: a file an operator, named as it is.

For GPUs of other makers, for machines that cannot compile CUDA, and for those who want to change a
kernel in Python. They are `torch.ops.tdnet_triton.*`; `tdnet_ops.backends` chooses them. Under
TRITON_INTERPRET=1, set before tdnet_ops is imported, they take CPU tensors.

maps.py and products.py are what the kernels share, launch.py chooses their configurations.
"""

from tdnet_ops.triton.attention_propagate import attention_propagate
from tdnet_ops.triton.attention_propagate_backward import attention_propagate_backward
from tdnet_ops.triton.block_sum_reduce import block_sum_reduce
from tdnet_ops.triton.block_sum_update import block_sum_update
from tdnet_ops.triton.pooled_affinity import pooled_affinity
from tdnet_ops.triton.softmax_propagate import softmax_propagate
from tdnet_ops.triton.spatial_pool import spatial_pool
from tdnet_ops.triton.upsample_argmax import upsample_argmax

__all__ = [
    "attention_propagate",
    "attention_propagate_backward",
    "block_sum_reduce",
    "block_sum_update",
    "pooled_affinity",
    "softmax_propagate",
    "spatial_pool",
    "upsample_argmax",
]
