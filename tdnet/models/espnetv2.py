"""ESPNetv2 (Mehta et al., CVPR 2019) at scale 2, for segmentation.

Its unit, EESP, reduces channels by a grouped 1x1 convolution, convolves the result by four
depthwise kernels of growing dilation, adds each to the next (so that no gridding remains), and
joins them by another grouped 1x1 convolution. Units that stride keep the pooled input beside their
own output and are reminded of the image. The decoder adds the encoder's maps from the coarsest to
the finest, each weighed by what the whole map says, and pools its own at five scales in between.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tdnet.models.backbone import Backbone
from tdnet.models.layers import ConvNorm, resize

_CHANNELS = (32, 128, 256, 512)  # at strides 2, 4, 8 and 16
_DECODED_CHANNELS = (64, 48, 32)  # at strides 8, 4 and 2
_BRANCHES = 4
_SCALES = (2.0, 1.5, 1.0, 0.5, 0.1)  # of the decoder's pooling
_SMALLEST = 5  # pixels of a scaled map
_POOLING_CHANNELS = 10


class NormPReLU(nn.Module):
    """BatchNorm and PReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.act = nn.PReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(x))


class ConvNormPReLU(ConvNorm):
    """A convolution without bias, BatchNorm and PReLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        groups: int = 1,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, groups)
        self.act = nn.PReLU(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))


class DilatedUnit(nn.Module):
    """EESP: ``[B, C_in, H, W] -> [B, C_out, H/stride, W/stride]``, with no activation at its end.

    Args:
        dilations: of the four depthwise convolutions, ascending.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, dilations: Sequence[int]
    ) -> None:
        super().__init__()
        width = out_channels // _BRANCHES
        self.reduce = ConvNormPReLU(in_channels, width, 1, groups=_BRANCHES)
        self.branches = nn.ModuleList(
            nn.Conv2d(
                width,
                width,
                3,
                stride,
                padding=dilation,
                dilation=dilation,
                groups=width,
                bias=False,
            )
            for dilation in dilations
        )
        self.joined = NormPReLU(out_channels)
        self.expand = ConvNorm(out_channels, out_channels, 1, groups=_BRANCHES)

    def forward(self, x: Tensor) -> Tensor:
        reduced = self.reduce(x)
        outputs = [self.branches[0](reduced)]
        for branch in list(self.branches)[1:]:
            outputs.append(branch(reduced) + outputs[-1])
        return self.expand(self.joined(torch.cat(outputs, dim=1)))


class ResidualUnit(nn.Module):
    """An EESP unit that keeps the shape, added to its input."""

    def __init__(self, channels: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.unit = DilatedUnit(channels, channels, 1, dilations)
        self.act = nn.PReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.unit(x) + x)


class StridedUnit(nn.Module):
    """Halves the size: the pooled input beside an EESP unit, plus what the image says.

    ``[B, C_in, H, W]`` and the image, pooled to H/2 x W/2, to ``[B, C_out, H/2, W/2]``.
    """

    def __init__(self, in_channels: int, out_channels: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.unit = DilatedUnit(in_channels, out_channels - in_channels, 2, dilations)
        self.remind = nn.Sequential(ConvNormPReLU(3, 3, 3), ConvNorm(3, out_channels, 1))
        self.act = nn.PReLU(out_channels)

    def forward(self, x: Tensor, pooled_image: Tensor) -> Tensor:
        out = torch.cat((_pooled(x), self.unit(x)), dim=1)
        return self.act(out + self.remind(pooled_image))


def _pooled(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=2, padding=1)


class EspnetV2(Backbone):
    """``[B, 3, H, W]`` to maps at strides 2, 4, 8 and 16, unlike other backbones."""

    def __init__(self) -> None:
        super().__init__()
        self.channels = _CHANNELS
        self.stem = ConvNormPReLU(3, _CHANNELS[0], 3, stride=2)
        self.down4 = StridedUnit(_CHANNELS[0], _CHANNELS[1], (1, 2, 3, 4))
        self.down8 = StridedUnit(_CHANNELS[1], _CHANNELS[2], (1, 2, 3, 4))
        self.units8 = nn.Sequential(*(ResidualUnit(_CHANNELS[2], (1, 2, 3, 4)) for _ in range(3)))
        self.down16 = StridedUnit(_CHANNELS[2], _CHANNELS[3], (1, 2, 3, 4))
        self.units16 = nn.Sequential(*(ResidualUnit(_CHANNELS[3], (1, 1, 2, 3)) for _ in range(7)))

    def forward(self, x: Tensor) -> list[Tensor]:
        image4 = _pooled(_pooled(x))
        image8 = _pooled(image4)
        map2 = self.stem(x)
        map4 = self.down4(map2, image4)
        map8 = self.units8(self.down8(map4, image8))
        map16 = self.units16(self.down16(map8, _pooled(image8)))
        return [map2, map4, map8, map16]


def build(name: str, dilated: bool) -> EspnetV2:
    """The backbone.

    Raises:
        ValueError: if it is to be dilated.
    """
    if dilated:
        raise ValueError(f"dilated: expected False for {name}, got True")
    return EspnetV2()


class MultiScalePooling(nn.Module):
    """Convolves a map at five scales: ``[B, C_in, H, W] -> [B, C_out, H, W]``.

    Scales above 1 are of the map resized up, below 1 of its averages.

    Args:
        channels: of the map while it is scaled.
        bias: of the last convolution.
    """

    def __init__(self, in_channels: int, channels: int, out_channels: int, bias: bool) -> None:
        super().__init__()
        self.reduce = ConvNormPReLU(in_channels, channels, 1)
        self.scaled = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
            for _ in _SCALES
        )
        self.joined = NormPReLU(len(_SCALES) * channels)
        self.merge = ConvNormPReLU(len(_SCALES) * channels, channels, 3, groups=channels)
        self.project = nn.Conv2d(channels, out_channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.reduce(x)
        maps = [
            _at_scale(x, scale, convolution)
            for scale, convolution in zip(_SCALES, self.scaled, strict=True)
        ]
        joined = self.joined(torch.cat(maps, dim=1))
        # Each group of the next convolution gets one channel at all scales.
        joined = joined.unflatten(1, (len(_SCALES), -1)).transpose(1, 2).flatten(1, 2)
        return self.project(self.merge(joined))


def _at_scale(x: Tensor, scale: float, convolution: nn.Module) -> Tensor:
    height, width = x.shape[-2:]
    if scale == 1:
        return convolution(x)
    size = (_scaled(height, scale), _scaled(width, scale))
    if scale > 1:
        return F.adaptive_avg_pool2d(convolution(resize(x, size)), (height, width))
    return resize(convolution(F.adaptive_avg_pool2d(x, size)), (height, width))


def _scaled(length: int, scale: float) -> int:
    return max(math.ceil(length * scale), _SMALLEST)


class WeighedShortcut(nn.Module):
    """A map of the encoder for the decoder, its channels weighed by what the whole map says."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weigh = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        groups = math.gcd(in_channels, out_channels)
        self.reduce = ConvNormPReLU(in_channels, out_channels, 3, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.sigmoid(self.weigh(F.adaptive_avg_pool2d(x, 1)))
        return self.reduce(x) * weights


class DecoderStage(nn.Module):
    """Pools the decoder's map at several scales and adds the encoder's next finer one."""

    def __init__(self, in_channels: int, shortcut_channels: int, out_channels: int) -> None:
        super().__init__()
        self.pooling = MultiScalePooling(in_channels, _POOLING_CHANNELS, out_channels, bias=False)
        self.pooled = NormPReLU(out_channels)
        self.shortcut = WeighedShortcut(shortcut_channels, out_channels)
        self.merged = NormPReLU(out_channels)

    def forward(self, x: Tensor, finer: Tensor) -> Tensor:
        height, width = finer.shape[-2:]
        x = resize(self.pooled(self.pooling(x)), (height, width))
        return self.merged(x + self.shortcut(finer))


class EspnetFeatures(nn.Module):
    """The backbone and its decoder.

    Args:
        stride: 8 for ``[B, 3, H, W] -> [B, 64, ceil(H/8), ceil(W/8)]`` (a path of a TDNet), 2 for
            ``[B, 32, ceil(H/2), ceil(W/2)]`` (the whole network but for its last pooling, which
            is the head).
    """

    def __init__(self, backbone: Backbone, stride: int) -> None:
        super().__init__()
        self.backbone = backbone
        coarsest, *finer = backbone.channels[::-1]
        stages = {8: 1, 2: 3}[stride]
        channels = (coarsest, *_DECODED_CHANNELS[:stages])
        self.out_channels = channels[-1]
        self.decoder = nn.ModuleList(
            DecoderStage(channels[stage], finer[stage], channels[stage + 1])
            for stage in range(stages)
        )

    def forward(self, image: Tensor) -> Tensor:
        x, *finer = self.backbone(image)[::-1]
        for stage, finer_map in zip(self.decoder, finer, strict=False):
            x = stage(x, finer_map)
        return x
