"""The features of BiSeNet* (Sec. 5.1): BiSeNet (Yu et al., ECCV 2018) without its spatial path.

In its place the second stage of the ResNet keeps the details, "which we found to have higher
efficiency and better training convergence".
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tdnet.models.backbone import Backbone
from tdnet.models.layers import ConvNormReLU, resize

CONTEXT_CHANNELS = 128
OUT_CHANNELS = 256


class AttentionRefinement(nn.Module):
    """Weighs each channel by what the whole map says: ``[B, C, H, W] -> [B, 128, H, W]``."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.reduce = ConvNormReLU(in_channels, CONTEXT_CHANNELS, 3)
        self.weigh = nn.Conv2d(CONTEXT_CHANNELS, CONTEXT_CHANNELS, 1, bias=False)
        self.norm = nn.BatchNorm2d(CONTEXT_CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.reduce(x)
        return x * torch.sigmoid(self.norm(self.weigh(F.adaptive_avg_pool2d(x, 1))))


class FeatureFusion(nn.Module):
    """Joins details and context: ``[B, C_1, H, W], [B, C_2, H, W] -> [B, 256, H, W]``."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.join = ConvNormReLU(in_channels, OUT_CHANNELS, 1)
        self.squeeze = nn.Conv2d(OUT_CHANNELS, OUT_CHANNELS // 4, 1)
        self.excite = nn.Conv2d(OUT_CHANNELS // 4, OUT_CHANNELS, 1)

    def forward(self, details: Tensor, context: Tensor) -> Tensor:
        x = self.join(torch.cat((details, context), dim=1))
        weights = self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)), inplace=True))
        return x + x * torch.sigmoid(weights)


class BilateralFeatures(nn.Module):
    """``[B, 3, H, W] -> [B, 256, ceil(H/8), ceil(W/8)]``.

    The last two stages of a backbone (strides 16 and 32) and the mean of the last are refined, from
    the coarsest to stride 8, and joined with the second stage.

    Args:
        backbone: not dilated.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.out_channels = OUT_CHANNELS
        self.backbone = backbone
        _, details, medium, coarse = self.backbone.channels
        self.whole = ConvNormReLU(coarse, CONTEXT_CHANNELS, 1)
        self.refine_coarse = AttentionRefinement(coarse)
        self.refine_medium = AttentionRefinement(medium)
        self.smooth_coarse = ConvNormReLU(CONTEXT_CHANNELS, CONTEXT_CHANNELS, 3)
        self.smooth_medium = ConvNormReLU(CONTEXT_CHANNELS, CONTEXT_CHANNELS, 3)
        self.fusion = FeatureFusion(details + CONTEXT_CHANNELS)

    def forward(self, image: Tensor) -> Tensor:
        _, details, medium, coarse = self.backbone(image)
        whole = self.whole(F.adaptive_avg_pool2d(coarse, 1))
        context = self._enlarged(self.refine_coarse(coarse) + whole, medium)
        context = self.smooth_coarse(context) + self.refine_medium(medium)
        context = self.smooth_medium(self._enlarged(context, details))
        return self.fusion(details, context)

    @staticmethod
    def _enlarged(x: Tensor, like: Tensor) -> Tensor:
        height, width = like.shape[-2:]
        return resize(x, (height, width))
