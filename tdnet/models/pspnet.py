"""PSPNet, the single-frame baseline."""

from torch import Tensor, nn

from tdnet.models.config import ModelConfig
from tdnet.models.heads import SegmentationHead
from tdnet.models.layers import resize
from tdnet.models.pyramid import PyramidPooling
from tdnet.models.resnet import DilatedResNet


class PSPNet(nn.Module):
    """A dilated ResNet, pyramid pooling over all channels and a head.

    Args:
        config: what to build; see ``tdnet.build_model``.
        depth: depth of the ResNet, 18, 50 or 101.
    """

    def __init__(self, config: ModelConfig, depth: int) -> None:
        super().__init__()
        self.config = config
        self.backbone = DilatedResNet(depth)
        channels = self.backbone.out_channels
        self.pyramid = PyramidPooling(channels)
        self.head = SegmentationHead(self.pyramid.out_channels, channels // 4, config.num_classes)

    def forward(self, image: Tensor) -> Tensor:
        """Normalised images ``[B, 3, H, W]`` to logits ``[B, K, H, W]``."""
        height, width = image.shape[-2:]
        return resize(self.coarse_logits(image), (height, width))

    def coarse_logits(self, image: Tensor) -> Tensor:
        """Normalised images ``[B, 3, H, W]`` to logits at stride 8."""
        return self.head(self.pyramid(self.backbone(image)))
