"""Pyramid pooling."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tdnet.models.blocks import FeatureBlocks, feature_blocks
from tdnet.models.layers import ConvNormReLU, resize

BINS = (1, 2, 3, 6)


class PyramidPooling(nn.Module):
    """Joins features with their averages over 1x1, 2x2, 3x3 and 6x6 bins.

    ``[B, C, H, W] -> [B, out_channels, H, W]``. Each branch pools, reduces to C/4 channels and is
    resized back (bilinear, align_corners=True).

    Args:
        in_channels: C.
        kept_half: None keeps all channels (out_channels = 2C: PSPNet); 0 or 1 keeps the first or
            the second half of the channels of the features and of each branch (out_channels = C:
            one path of a TDNet, Sec. 3.1).
    """

    def __init__(self, in_channels: int, kept_half: int | None = None) -> None:
        super().__init__()
        if kept_half not in (None, 0, 1):
            raise ValueError(f"kept_half: expected None, 0 or 1, got {kept_half}")
        self.kept_half = kept_half
        share = 1 if kept_half is None else 2
        branch_channels = in_channels // len(BINS) // share
        self.part_channels = [in_channels // share, *[branch_channels] * len(BINS)]  # as joined
        self.out_channels = sum(self.part_channels)
        self.branches = nn.ModuleList(
            ConvNormReLU(in_channels, in_channels // len(BINS), 1) for _ in BINS
        )

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        return torch.cat(
            [self._keep(x), *(resize(pooled, (height, width)) for pooled in self._pool(x))], dim=1
        )

    def blocks(self, x: Tensor) -> FeatureBlocks:
        """What a call joins, neither resized nor joined, for projections that sum over it."""
        return feature_blocks(self._keep(x), self._pool(x))

    def _pool(self, x: Tensor) -> list[Tensor]:
        return [
            self._keep(branch(F.adaptive_avg_pool2d(x, bins)))
            for bins, branch in zip(BINS, self.branches, strict=True)
        ]

    def _keep(self, x: Tensor) -> Tensor:
        return x if self.kept_half is None else x.chunk(2, dim=1)[self.kept_half]
