"""What a sub-network finds in a frame, at stride 8."""

from torch import Tensor, nn

from tdnet.architectures import RESNET_DEPTHS, ModelConfig
from tdnet.models.bilateral import BilateralFeatures
from tdnet.models.pyramid import PyramidPooling
from tdnet.models.resnet import ResNet


class PyramidFeatures(nn.Module):
    """A dilated ResNet and pyramid pooling: ``[B, 3, H, W] -> [B, out_channels, H/8, W/8]``.

    Args:
        depth: of the ResNet.
        kept_half: see PyramidPooling.
    """

    def __init__(self, depth: int, kept_half: int | None = None) -> None:
        super().__init__()
        self.backbone = ResNet(depth, dilated=True)
        self.pyramid = PyramidPooling(self.backbone.channels[-1], kept_half)
        self.out_channels = self.pyramid.out_channels

    def forward(self, image: Tensor) -> Tensor:
        return self.pyramid(self.backbone(image)[-1])


def build_features(
    config: ModelConfig, path: int | None = None
) -> PyramidFeatures | BilateralFeatures:
    """The features of a single-frame model (path None) or of a path of a TDNet.

    Paths with pyramid pooling keep one half of the channels, by turns (Sec. 3.1); those of
    BiSeNet* keep all, since reducing them to d_v channels costs little.
    """
    depth = RESNET_DEPTHS[config.backbone]
    if config.features == "bilateral":
        return BilateralFeatures(depth)
    return PyramidFeatures(depth, None if path is None else path % 2)
