"""What a sub-network finds in a frame, at stride 8 (2 in a single ESPNetv2)."""

from torch import Tensor, nn

from tdnet.architectures import ModelConfig
from tdnet.models.backbone import Backbone, build_backbone
from tdnet.models.bilateral import BilateralFeatures
from tdnet.models.blocks import FeatureBlocks
from tdnet.models.espnetv2 import EspnetFeatures
from tdnet.models.fpn import PyramidNetworkFeatures
from tdnet.models.pyramid import PyramidPooling


class PyramidFeatures(nn.Module):
    """A dilated backbone and pyramid pooling: ``[B, 3, H, W] -> [B, out_channels, H/8, W/8]``.

    Args:
        backbone: dilated.
        kept_half: see PyramidPooling. None: the features are joined, for the 3x3 convolution of a
            head. Otherwise they come in blocks, for the projections of a path.
    """

    def __init__(self, backbone: Backbone, kept_half: int | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.pyramid = PyramidPooling(self.backbone.channels[-1], kept_half)
        self.out_channels = self.pyramid.out_channels

    def forward(self, image: Tensor) -> Tensor | FeatureBlocks:
        x = self.backbone(image)[-1]
        return self.pyramid(x) if self.pyramid.kept_half is None else self.pyramid.blocks(x)


Features = PyramidFeatures | BilateralFeatures | PyramidNetworkFeatures | EspnetFeatures


def build_features(config: ModelConfig, path: int | None = None) -> Features:
    """The features of a single-frame model (path None) or of a path of a TDNet.

    Paths with pyramid pooling keep one half of the channels, by turns (Sec. 3.1); the others keep
    all, since reducing them to d_v channels costs little.
    """
    is_dilated = config.features == "pyramid"
    backbone = build_backbone(config.backbone, is_dilated)
    if config.features == "bilateral":
        return BilateralFeatures(backbone)
    if config.features == "espnet":
        return EspnetFeatures(backbone, stride=2 if path is None else 8)
    if config.features == "fpn":
        return PyramidNetworkFeatures(backbone)
    return PyramidFeatures(backbone, None if path is None else path % 2)
