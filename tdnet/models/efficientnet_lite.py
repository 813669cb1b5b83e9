"""EfficientNet-Lite backbones (Tan and Le, ICML 2019, in Google's form for mobile devices, 2020).

EfficientNet without squeeze-and-excitation, with ReLU6, with a stem that does not scale, and with
first and last stages whose depth does not. There is no head and no classifier.

Convolutions pad alike on both sides. The original weights were trained with TensorFlow's "SAME"
padding, which at even sizes pads one pixel more at the end than at the start: what a stride-2
convolution sees there is moved by a pixel, and its outputs differ a little from the original's.
Here all levels stay centred on the pixels of the image, at odd sizes too.
"""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from tdnet.models.backbone import Backbone
from tdnet.models.layers import ConvNorm

_MULTIPLIERS = {  # of width and depth
    "efficientnet-lite0": (1.0, 1.0),
    "efficientnet-lite1": (1.0, 1.1),
    "efficientnet-lite2": (1.1, 1.2),
}
_STEM_CHANNELS = 32
# Kernel size, stride, expansion, channels and blocks of the seven stages.
_STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
_LAST_OF_LEVEL = (1, 2, 4, 6)  # the last stage of each stride from 4 on


class ConvNormReLU6(ConvNorm):
    """A convolution without bias, BatchNorm and ReLU6."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(super().forward(x), inplace=True)


class InvertedResidual(nn.Module):
    """Expands channels, convolves each, reduces them; a shortcut where the shape stays."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int, expansion: int
    ) -> None:
        super().__init__()
        inner = in_channels * expansion
        self.expand = ConvNormReLU6(in_channels, inner, 1) if expansion > 1 else None
        self.depthwise = ConvNormReLU6(inner, inner, kernel_size, stride, groups=inner)
        self.reduce = ConvNorm(inner, out_channels, 1)
        self.has_shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        out = x if self.expand is None else self.expand(x)
        out = self.reduce(self.depthwise(out))
        return out + x if self.has_shortcut else out


class EfficientNetLite(Backbone):
    """``[B, 3, H, W]`` to maps at strides 4, 8, 16 and 32; 24, 40, 112 and 320 channels in Lite0.

    Args:
        width: multiplies the channels of the stages, which are rounded to multiples of 8.
        depth: multiplies the number of blocks of all stages but the first and the last.
    """

    def __init__(self, width: float, depth: float) -> None:
        super().__init__()
        self.scale = (width, depth)
        self.stem = ConvNormReLU6(3, _STEM_CHANNELS, 3, stride=2)
        self.stages = nn.ModuleList()
        channels, widths = _STEM_CHANNELS, []
        for index, (kernel_size, stride, expansion, base, count) in enumerate(_STAGES):
            is_fixed = index in (0, len(_STAGES) - 1)
            blocks = []
            for block in range(count if is_fixed else math.ceil(count * depth)):
                out = _rounded(base * width)
                blocks.append(
                    InvertedResidual(
                        channels, out, kernel_size, stride if block == 0 else 1, expansion
                    )
                )
                channels = out
            self.stages.append(nn.Sequential(*blocks))
            widths.append(channels)
        self.channels = tuple(widths[stage] for stage in _LAST_OF_LEVEL)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
            elif isinstance(module, nn.BatchNorm2d):  # as in the original training
                module.eps, module.momentum = 1e-3, 0.01

    def forward(self, x: Tensor) -> list[Tensor]:
        outputs = [self.stem(x)]
        for stage in self.stages:
            outputs.append(stage(outputs[-1]))
        return [outputs[1 + stage] for stage in _LAST_OF_LEVEL]


def _rounded(channels: float) -> int:
    """The multiple of 8 nearest to a number of channels, never below 90% of it."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


def build(name: str, dilated: bool) -> EfficientNetLite:
    """The EfficientNet-Lite of a name in BACKBONES.

    Raises:
        ValueError: if it is to be dilated.
    """
    if dilated:
        raise ValueError(
            f"features: expected bilateral or fpn for {name}, which is never dilated, got pyramid"
        )
    return EfficientNetLite(*_MULTIPLIERS[name])
