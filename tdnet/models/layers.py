"""Small layers that several parts of the networks share."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tdnet.architectures import Size


class ConvNorm(nn.Module):
    """A convolution without bias, padded alike on all sides, and BatchNorm.

    ``[B, C_in, H, W] -> [B, C_out, ceil(H/stride), ceil(W/stride)]``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        groups: int = 1,
    ) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False
        )
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class ConvNormReLU(ConvNorm):
    """A convolution without bias, BatchNorm and ReLU: ``[B, C_in, H, W] -> [B, C_out, H, W]``."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x), inplace=True)


class SpatialLayerNorm(nn.Module):
    """LayerNorm over the spatial dimensions of each channel, with an affine per position.

    ``[B, C, H, W] -> [B, C, H, W]``. The affine is stored for one feature size, ``size``
    (97 x 193 in the published models, which is a 769 x 1537 input at stride 8). A feature map of
    another size is normalised over its own positions, and the affine is interpolated to its size
    (bilinear, align_corners=True, so that the corners of the image keep their values).
    """

    def __init__(self, size: Size, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        if weight.shape != (height, width):
            affine = torch.stack((weight, bias))[None]
            weight, bias = resize(affine, (height, width))[0].unbind()
        return F.layer_norm(x, (height, width), weight, bias, self.eps)


def resize(x: Tensor, size: Size) -> Tensor:
    """Resize ``[B, C, H, W]`` bilinearly to ``size``; the corner pixels keep their values."""
    return F.interpolate(x, size, mode="bilinear", align_corners=True)
