"""Blocks of mmcv and mmcv-lite."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tdnet_ops.nn import has_hooks
from tdnet_ops.swap.blocks.parts import attend
from tdnet_ops.swap.known_block import Forward, KnownBlock, Refused


def embedded_gaussian(block: Any, x: Tensor) -> Tensor:
    v, q, k = block.g(x), block.theta(x), block.phi(x)
    scale = None if block.use_scale else 1.0
    return attend(q, k, v, _only_convolution(block.conv_out), x, scale=scale)


def gaussian(block: Any, x: Tensor) -> Tensor:
    v, k = block.g(x), block.phi(x) if block.sub_sample else x
    return attend(x, k, v, _only_convolution(block.conv_out), x, scale=1.0)


def _only_convolution(conv_module: Any) -> nn.Module:
    """The convolution of a ConvModule that does nothing else, else the module."""
    layers = ("with_norm", "with_activation", "with_explicit_padding")
    other = any(getattr(conv_module, layer, True) for layer in layers)
    return conv_module if other or has_hooks(conv_module) else conv_module.conv


_FORWARDS = {"embedded_gaussian": embedded_gaussian, "gaussian": gaussian}


def _convert(block: Any) -> Forward:
    if block.mode not in _FORWARDS:
        raise Refused(f"mode {block.mode!r} divides by the number of keys, without a softmax")
    return _FORWARDS[block.mode]


KNOWN_BLOCKS = (
    KnownBlock(
        paths=("mmcv.cnn.bricks.non_local.NonLocal2d",),
        convert=_convert,
        sources=("ac2f182b237e",),
        methods=("forward", "embedded_gaussian", "gaussian"),
    ),
)
