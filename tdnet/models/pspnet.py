"""PSPNet, the single-frame baseline."""

from torch import Tensor

from tdnet.architectures import RESNET_DEPTHS, ModelConfig
from tdnet.models.heads import SegmentationHead
from tdnet.models.pyramid import PyramidPooling
from tdnet.models.resnet import DilatedResNet
from tdnet.models.stream import SingleFrameModel


class PSPNet(SingleFrameModel):
    """A dilated ResNet, pyramid pooling over all channels and a head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.backbone = DilatedResNet(RESNET_DEPTHS[config.backbone])
        self.pyramid = PyramidPooling(self.backbone.out_channels)
        self.head = SegmentationHead(
            self.pyramid.out_channels, config.head_channels, config.num_classes
        )

    def coarse_logits(self, image: Tensor) -> Tensor:
        """Normalised images ``[B, 3, H, W]`` to logits at stride 8."""
        return self.head(self.pyramid(self.backbone(image)))
