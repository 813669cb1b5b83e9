"""The operators: a file each. A public one is imported here by name; the others are found.

Each takes feature maps [B, C, H, W] of any strides; channels_last is the fast path.

Letters in all shapes: B batch; C channels; H x W the query map, N = H*W queries; h x w the pooled
key map, M = h*w keys; d_k query and key channels; d_v value channels; d_out output channels. Sizes
are in pixels of the map.

dtypes: float32 and float64; float16 and bfloat16 accumulate in float32. All tensors of one call
share dtype and device.

A returned map is laid out like x, blocks[0] or q, that of softmax_propagate like the residual, else
v: channels_last exactly where the channels of that map are adjacent in memory (stride(1) == 1),
contiguous elsewhere.

Every function takes `backend`: None chooses by device, a name (`tdnet_ops.backends.NAMES`) forces
one.

TF32: float32 on CUDA computes in full precision unless
`torch.backends.cuda.matmul.fp32_precision` is "tf32"; convolutions here follow that flag too, and a
backward pass its forward pass.

Gradients: reverse mode, also by torch.func (grad, vjp, jacrev, vmap); second derivatives of all but
attention_propagate. Forward mode (jvp, jacfwd) is refused; `tdnet_ops.reference` has it.

Numbers are Python's (or symbolic sizes), never tensors: a tensor would lose its gradient. Only the
public functions refuse one; `torch.ops.tdnet` takes what torch's dispatcher converts.

Errors, everywhere: ValueError, TypeError or RuntimeError that names the argument, what came and
what was expected; RuntimeError with the reason where a forced backend cannot run.
"""

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
from tdnet_ops.operators.winograd_conv2d import winograd_conv2d

__all__ = [
    "attention_propagate",
    "block_sum_reduce",
    "block_sum_update",
    "pooled_affinity",
    "softmax_propagate",
    "spatial_pool",
    "upsample_argmax",
    "winograd_conv2d",
]


def _all() -> dict[str, Operator]:
    found = {}
    for module in pkgutil.iter_modules(__path__):
        of_module = importlib.import_module(f"{__name__}.{module.name}")
        found.update({one.name: one for one in getattr(of_module, "OPERATORS", ())})
    return found


OPERATORS = _all()
