"""A model at its fastest: the same outputs, without what only training needs.

Norms are folded into the convolutions before them, what follows a convolution (a residual sum, a
ReLU) is computed with it, and on CPUs 3x3 convolutions of stride 1 run by Winograd's algorithm, a
quarter of the multiplications.
"""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from tdnet.models.bilateral import AttentionRefinement
from tdnet.models.encoding import KeyProjection
from tdnet.models.layers import ConvNorm, ConvNormReLU
from tdnet.models.resnet import BasicBlock, Bottleneck, ResNet
from tdnet.models.single_frame import SingleFrameModel
from tdnet.models.tdnet import TDNet
from tdnet_ops import winograd_conv2d, winograd_transform

# A convolution and the norm after it, by the module that calls them in this order.
_NORMS: dict[type[nn.Module], tuple[tuple[str, str], ...]] = {
    AttentionRefinement: (("weigh", "norm"),),
    BasicBlock: (("conv1", "bn1"), ("conv2", "bn2")),
    Bottleneck: (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3")),
    ConvNorm: (("conv", "norm"),),
    KeyProjection: (("reduce", "norm"),),
    ResNet: (("conv1", "bn1"),),
}
# With fewer channels the transforms cost what they save.
_LEAST_CHANNELS = 32


def optimize(model: TDNet | SingleFrameModel) -> TDNet | SingleFrameModel:
    """A copy of a model that segments faster; its logits differ by rounding alone.

    It is in eval mode, frozen, and neither to be trained nor saved. Its 3x3 weights for
    Winograd's algorithm take four times their memory.

    Args:
        model: from ``build_model`` or ``load_checkpoint``, on the device and of the dtype that it
            is to run in: algorithms are chosen by them.
    """
    fast = copy.deepcopy(model).eval().requires_grad_(False)
    for module in list(fast.modules()):
        _fold_norms(module)
    _replace(fast)
    return fast


def _fold_norms(module: nn.Module) -> None:
    for kind, pairs in _NORMS.items():
        if isinstance(module, kind):
            for convolution, norm in pairs:
                _fold(module, convolution, norm)
    if isinstance(module, nn.Sequential):
        names = list(module._modules)
        for convolution, norm in pairwise(names):
            _fold(module, convolution, norm)


def _fold(module: nn.Module, convolution_name: str, norm_name: str) -> None:
    """Folds a norm into the convolution before it, if they are such, and leaves none."""
    convolution, norm = getattr(module, convolution_name), getattr(module, norm_name)
    if isinstance(convolution, nn.Sequential) and isinstance(norm, nn.BatchNorm2d):
        # The stem of deep ResNets ends in a convolution.
        convolution[-1] = fuse_conv_bn_eval(cast(nn.Conv2d, convolution[-1]), norm)
    elif isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
        setattr(module, convolution_name, fuse_conv_bn_eval(convolution, norm))
    else:
        return
    setattr(module, norm_name, nn.Identity())


def _replace(module: nn.Module) -> None:
    """Puts the faster forms below in the places of modules, from the whole to its parts."""
    for name, child in module.named_children():
        if isinstance(child, (BasicBlock, Bottleneck)):
            child = FastBlock(child)
        elif type(child) is ConvNormReLU:
            child = FastConvolution(child.conv, relu=True)
        elif isinstance(child, nn.Conv2d) and _suits_winograd(child):
            child = FastConvolution(child)
        else:
            _replace(child)
        setattr(module, name, child)


def _suits_winograd(convolution: nn.Conv2d) -> bool:
    weight = convolution.weight
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and convolution.kernel_size == (3, 3)
        and convolution.stride == (1, 1)
        and convolution.groups == 1
        and convolution.padding_mode == "zeros"
        and convolution.padding == convolution.dilation
        and convolution.dilation[0] == convolution.dilation[1]
        and min(convolution.in_channels, convolution.out_channels) >= _LEAST_CHANNELS
    )


class FastConvolution(nn.Module):
    """A convolution, a residual sum and a ReLU: ``[B, C, H, W] -> [B, C_out, H', W']``.

    Args:
        convolution: with the norm folded in.
        relu: whether a ReLU ends it.
    """

    def __init__(self, convolution: nn.Conv2d, relu: bool = False) -> None:
        super().__init__()
        self.activation = "relu" if relu else "none"
        self.convolution = None if _suits_winograd(convolution) else convolution
        if self.convolution is None:
            self.dilation = convolution.dilation[0]
            self.weight = nn.Parameter(winograd_transform(convolution.weight), requires_grad=False)
            self.bias = convolution.bias

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if self.convolution is None:
            return winograd_conv2d(
                x, self.weight, self.bias, residual, self.dilation, self.activation
            )
        out = self.convolution(x)
        if residual is not None:
            out = out.add_(residual)
        return F.relu_(out) if self.activation == "relu" else out


class FastBlock(nn.Module):
    """A `BasicBlock` or a `Bottleneck` whose norms are folded."""

    def __init__(self, block: BasicBlock | Bottleneck) -> None:
        super().__init__()
        convolutions = [getattr(block, name) for name, _ in _NORMS[type(block)]]
        self.convolutions = nn.ModuleList(FastConvolution(c, relu=True) for c in convolutions)
        self.downsample = block.downsample

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        *convolutions, last = self.convolutions
        for convolution in convolutions:
            x = convolution(x)
        return last(x, shortcut)
