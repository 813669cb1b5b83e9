"""A small feature pyramid network (Lin et al., CVPR 2017) that ends at stride 8."""

from torch import Tensor, nn

from tdnet.models.backbone import Backbone
from tdnet.models.layers import ConvNormReLU, resize

OUT_CHANNELS = 128


class PyramidNetworkFeatures(nn.Module):
    """``[B, 3, H, W] -> [B, 128, ceil(H/8), ceil(W/8)]``.

    The maps of a backbone at strides 8, 16 and 32 are reduced to 128 channels each, added from
    the coarsest to the finest, and smoothed.

    Args:
        backbone: not dilated.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.out_channels = OUT_CHANNELS
        self.backbone = backbone
        self.laterals = nn.ModuleList(
            nn.Conv2d(channels, OUT_CHANNELS, 1) for channels in backbone.channels[1:]
        )
        self.smooth = ConvNormReLU(OUT_CHANNELS, OUT_CHANNELS, 3)

    def forward(self, image: Tensor) -> Tensor:
        _, *levels = self.backbone(image)
        fine, medium, coarse = (
            lateral(level) for lateral, level in zip(self.laterals, levels, strict=True)
        )
        medium = medium + resize(coarse, medium.shape[-2:])
        return self.smooth(fine + resize(medium, fine.shape[-2:]))
