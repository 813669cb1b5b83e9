"""The final prediction layer."""

import torch.nn.functional as F
from torch import Tensor, nn

from tdnet.architectures import ModelConfig
from tdnet.models.espnetv2 import MultiScalePooling
from tdnet.models.layers import ConvNormReLU


class SegmentationHead(nn.Module):
    """3x3 convolution, BatchNorm, ReLU, dropout of channels, 1x1 convolution to the classes.

    ``[B, in_channels, H, W] -> [B, num_classes, H, W]`` logits.
    """

    def __init__(self, in_channels: int, hidden_channels: int, num_classes: int) -> None:
        super().__init__()
        self.hidden = ConvNormReLU(in_channels, hidden_channels, 3)
        self.classifier = nn.Conv2d(hidden_channels, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.dropout2d(self.hidden(x), 0.1, self.training))


def build_head(config: ModelConfig, in_channels: int) -> SegmentationHead | MultiScalePooling:
    """The head of a single-frame model: that of ESPNetv2 is the last pooling of its decoder."""
    if config.features == "espnet":
        return MultiScalePooling(in_channels, config.head_channels, config.num_classes, bias=True)
    return SegmentationHead(in_channels, config.head_channels, config.num_classes)
