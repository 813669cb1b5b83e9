"""Features in blocks of channels, which projections sum without joining them (Sec. 3.1)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tdnet.models.layers import resize
from tdnet_ops import block_sum_reduce


@dataclass(frozen=True)
class FeatureBlocks:
    """Features ``[B, C, H, W]`` as the blocks that make up their channels, in this order.

    Attributes:
        full: ``[B, C_0, H, W]``.
        pooled: ``[B, C_i, h_i, w_i]``, all h_i * w_i of them together being n tiny pixels. Joined
            to the first block they would be resized (bilinear, align_corners=True).
        shares: ``[1, n, H, W]``, what each tiny pixel counts in each pixel of its resized map.
    """

    full: Tensor
    pooled: tuple[Tensor, ...]
    shares: Tensor


def feature_blocks(full: Tensor, pooled: Sequence[Tensor]) -> FeatureBlocks:
    """Blocks of a map ``[B, C_0, H, W]`` and of tiny ones ``[B, C_i, h_i, w_i]``."""
    height, width = full.shape[-2:]
    shares = []
    for x in pooled:
        tiny_height, tiny_width = x.shape[-2:]
        count = tiny_height * tiny_width
        one_each = torch.eye(count, dtype=full.dtype, device=full.device)
        one_each = one_each.view(1, count, tiny_height, tiny_width)
        one_each = one_each.contiguous(memory_format=torch.channels_last)
        shares.append(resize(one_each, (height, width)))
    return FeatureBlocks(full, tuple(pooled), torch.cat(shares, dim=1))


def project(convolution: nn.Conv2d, features: Tensor | FeatureBlocks) -> Tensor:
    """A 1x1 convolution of features ``[B, C, H, W] -> [B, C_out, H, W]``, in blocks or not.

    It commutes with the resizing of pooled maps, so it is applied to these at their tiny size, and
    what becomes of their n pixels is resized by a product with the shares of these. In a batch of
    one the shares are one more block, of n channels, and what became of the pixels its weights.
    """
    if isinstance(features, Tensor):
        return convolution(features)
    full, shares = features.full, features.shares
    channels = [x.shape[1] for x in (full, *features.pooled)]
    weight, *pooled_weights = convolution.weight.split(channels, dim=1)
    reduced = [
        F.conv2d(x, part).flatten(2)
        for x, part in zip(features.pooled, pooled_weights, strict=True)
    ]
    tiny = torch.cat(reduced, dim=2)  # [B, C_out, n]
    if full.shape[0] == 1:
        weights = [weight, tiny[0, :, :, None, None]]
        return block_sum_reduce([full, shares], weights, convolution.bias)
    resized = shares[0].flatten(1).mT @ tiny.mT  # [B, H * W, C_out]
    own = block_sum_reduce([full], [weight], convolution.bias)
    return own + resized.mT.unflatten(2, full.shape[-2:])
