"""ResNet backbones, dilated (output stride 8) or not (32).

Parameter names are the usual ones of ResNets (``conv1``, ``layer1.0.conv1``, ...), so ImageNet
weights fit. There is no classifier.
"""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from tdnet.models.backbone import Backbone

# Dilations of the blocks of the last stage ("multi-grid").
_MULTI_GRID = (4, 8, 16)

_DEPTHS = {"resnet-18": 18, "resnet-34": 34, "resnet-50": 50, "resnet-101": 101}
_BLOCK_COUNTS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def _conv3x3(in_channels: int, out_channels: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    return nn.Conv2d(
        in_channels, out_channels, 3, stride, padding=dilation, dilation=dilation, bias=False
    )


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; the block of ResNet-18 and -34.

    ``dilation`` is that of the first convolution, ``stage_dilation`` that of the second.
    """

    expansion = 1

    def __init__(
        self, in_channels: int, channels: int, stride: int, dilation: int, stage_dilation: int
    ) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, channels, stride, dilation)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _conv3x3(channels, channels, dilation=stage_dilation)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = _shortcut(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        return F.relu(out + shortcut, inplace=True)


class Bottleneck(nn.Module):
    """1x1, 3x3 (stride and dilation) and 1x1 convolutions; the block of ResNet-50 and -101."""

    expansion = 4

    def __init__(
        self, in_channels: int, channels: int, stride: int, dilation: int, stage_dilation: int
    ) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _conv3x3(channels, channels, stride, dilation)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = _shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        return F.relu(out + shortcut, inplace=True)


class ResNet(Backbone):
    """``[B, 3, H, W]`` to the outputs of the four stages.

    They are at strides 4, 8, 8, 8 if dilated, else 4, 8, 16, 32 (rounded up), with ``channels``
    channels.

    Args:
        depth: 18 or 34 (a 7x7 stem, 64 to 512 channels), 50 or 101 (the deep stem of three 3x3
            convolutions, 256 to 2048 channels).
        dilated: whether the last two stages dilate (2, then 4, 8, 16) in place of striding.

    Raises:
        ValueError: for any other depth.
    """

    def __init__(self, depth: int, dilated: bool) -> None:
        super().__init__()
        if depth not in _BLOCK_COUNTS:
            raise ValueError(f"depth: expected one of {sorted(_BLOCK_COUNTS)}, got {depth}")
        is_deep = depth >= 50
        block = Bottleneck if is_deep else BasicBlock
        counts = _BLOCK_COUNTS[depth]
        self.conv1 = _deep_stem() if is_deep else _plain_stem()
        stem_channels = 128 if is_deep else 64
        self.bn1 = nn.BatchNorm2d(stem_channels)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)

        self.layer1 = _stage(block, stem_channels, 64, 1, (1,) * counts[0], 1)
        self.layer2 = _stage(block, 64 * block.expansion, 128, 2, (1,) * counts[1], 1)
        stride = 1 if dilated else 2
        dilations = (1,) + (2 if dilated else 1,) * (counts[2] - 1)
        self.layer3 = _stage(
            block, 128 * block.expansion, 256, stride, dilations, 2 if dilated else 1
        )
        dilations = _MULTI_GRID[: counts[3]] if dilated else (1,) * counts[3]
        self.layer4 = _stage(
            block, 256 * block.expansion, 512, stride, dilations, 4 if dilated else 1
        )
        self.channels = tuple(channels * block.expansion for channels in (64, 128, 256, 512))
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = math.prod(module.kernel_size) * module.out_channels
                nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))

    def forward(self, x: Tensor) -> list[Tensor]:
        outputs = [self.maxpool(F.relu(self.bn1(self.conv1(x)), inplace=True))]
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            outputs.append(stage(outputs[-1]))
        return outputs[1:]


def build(name: str, dilated: bool) -> ResNet:
    """The ResNet of a name in BACKBONES."""
    return ResNet(_DEPTHS[name], dilated)


def _plain_stem() -> nn.Module:
    return nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)


def _deep_stem() -> nn.Module:
    return nn.Sequential(
        _conv3x3(3, 64, stride=2),
        nn.BatchNorm2d(64),
        nn.ReLU(inplace=True),
        _conv3x3(64, 64),
        nn.BatchNorm2d(64),
        nn.ReLU(inplace=True),
        _conv3x3(64, 128),
    )


def _stage(
    block: type[BasicBlock] | type[Bottleneck],
    in_channels: int,
    channels: int,
    stride: int,
    dilations: tuple[int, ...],
    stage_dilation: int,
) -> nn.Sequential:
    blocks: list[nn.Module] = []
    for dilation in dilations:
        blocks.append(block(in_channels, channels, stride, dilation, stage_dilation))
        in_channels, stride = channels * block.expansion, 1
    return nn.Sequential(*blocks)
