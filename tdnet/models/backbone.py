"""What every backbone is, and how one is found by its name.

To add one: a module with ``build(name, dilated) -> Backbone``, and a row in
`tdnet.architectures.BACKBONES`.
"""

from abc import abstractmethod
from importlib import import_module

from torch import Tensor, nn

from tdnet.architectures import BACKBONES, check_among


class Backbone(nn.Module):
    """``[B, 3, H, W]`` to four maps at strides 4, 8, 16, 32 (4, 8, 8, 8 if dilated), rounded up.

    Pixel (i, j) of a map at stride s is centred on pixel (s i, s j) of the image, so that at sizes
    8 a + 1 the corners of image and map agree.

    Attributes:
        channels: of the four maps.
    """

    channels: tuple[int, ...]

    @abstractmethod
    def forward(self, x: Tensor) -> list[Tensor]: ...


def build_backbone(name: str, dilated: bool) -> Backbone:
    """The backbone of a name in BACKBONES, with random weights.

    Raises:
        ValueError: for an unknown name, or a backbone that cannot be dilated.
    """
    check_among("backbone", name, BACKBONES)
    backbone: Backbone = import_module(BACKBONES[name]).build(name, dilated)
    return backbone
