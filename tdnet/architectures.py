"""What models are made of, and those that have a name.

It imports no torch, so that `tdnet --help` can list the names at once.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, fields, replace
from typing import Literal, get_args

from tdnet.files import shown

Features = Literal["pyramid", "bilateral", "fpn", "espnet"]
PoolingMode = Literal["max", "subsample"]
Aggregation = Literal["apm", "sta", "add", "flow"]
Size = tuple[int, int]
"""(height, width)"""

# The module of each backbone, which has build(name, dilated): see tdnet.models.backbone.
BACKBONES = {
    "resnet-18": "tdnet.models.resnet",
    "resnet-34": "tdnet.models.resnet",
    "resnet-50": "tdnet.models.resnet",
    "resnet-101": "tdnet.models.resnet",
    "efficientnet-lite0": "tdnet.models.efficientnet_lite",
    "efficientnet-lite1": "tdnet.models.efficientnet_lite",
    "efficientnet-lite2": "tdnet.models.efficientnet_lite",
    "espnetv2": "tdnet.models.espnetv2",
}

_MOST_PATHS = 16  # a path has a hop for every other one
_LARGEST_NUMBER = 2**31 - 1


@dataclass(frozen=True)
class ModelConfig:
    """All that it takes to build a model again; checkpoints hold it beside the weights.

    Attributes:
        name: of its row in MODELS.
        backbone: of each sub-network, a key of BACKBONES.
        features: what is made of the backbone's outputs: "pyramid" (as in PSPNet), "bilateral"
            (as in BiSeNet*), "fpn" (a small feature pyramid network) or "espnet" (the decoder of
            ESPNetv2, which is for the backbone espnetv2 alone).
        num_paths: m. 1 is a single-frame model, to which what follows `num_classes` says nothing.
        head_channels: between the two convolutions of a head.
        num_classes: K, the channels of the logits.
        value_channels: d_v.
        pooling_mode: gamma of Eq. 3: "max", or "subsample" (what published weights expect).
        pooling_stride: n of Eq. 3.
        norm_size: feature size for which the LayerNorm keeps its affine; others interpolate it.
            97 x 193 are the features of a 769 x 1537 image.
        aggregation: how a frame is joined with those before it: "apm" (attention propagation, Eq.
            4 and 5), "sta" (attention to each of them, Eq. 2), "add" (the plain sum of values at
            full size, which nothing pools) or "flow" (the same, each carried to the current frame
            by optical flow; needs OpenCV).
        shared: whether one sub-network, with all that follows it, takes every path (Table 7).

    Raises:
        ValueError: for a value that no model can have; the text names it.
    """

    name: str
    backbone: str
    features: Features
    num_paths: int
    head_channels: int
    num_classes: int = 19
    value_channels: int = 512
    pooling_mode: PoolingMode = "max"
    pooling_stride: int = 4
    norm_size: Size = (97, 193)
    aggregation: Aggregation = "apm"
    shared: bool = False

    def __post_init__(self) -> None:
        check_among("backbone", self.backbone, BACKBONES)
        check_among("features", self.features, get_args(Features))
        if (self.features == "espnet") != (self.backbone == "espnetv2"):
            raise ValueError(
                "features: expected espnet for the backbone espnetv2 and for no other, "
                f"got {self.features} for {self.backbone}"
            )
        check_among("pooling_mode", self.pooling_mode, get_args(PoolingMode))
        check_among("aggregation", self.aggregation, get_args(Aggregation))
        if type(self.shared) is not bool:
            raise ValueError(f"shared: expected True or False, got {shown(self.shared)}")
        _check_number("num_paths", self.num_paths, _MOST_PATHS)
        for name in ("head_channels", "num_classes", "value_channels", "pooling_stride"):
            _check_number(name, getattr(self, name))
        if not isinstance(self.norm_size, tuple) or len(self.norm_size) != 2:
            raise ValueError(f"norm_size: expected (height, width), got {shown(self.norm_size)}")
        for index, number in enumerate(self.norm_size):
            _check_number(f"norm_size[{index}]", number)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ModelConfig:
        """What `to_json` made. What an older file leaves out is as in the model's row.

        Raises:
            ValueError: if it is something else, or names a model or attribute that is unknown.
        """
        try:
            told = json.loads(text)
            name = told["name"]
            if isinstance(told.get("norm_size"), list):
                told["norm_size"] = tuple(told["norm_size"])
        except (ValueError, TypeError, LookupError, RecursionError, AttributeError) as error:
            raise ValueError("its metadata does not say which model it holds") from error
        known = [field.name for field in fields(cls)]
        if unknown := [attribute for attribute in told if attribute not in known]:
            raise ValueError(f"{shown(unknown[0])}: no attribute of a model: {', '.join(known)}")
        check_among("name", name, MODELS)
        return replace(MODELS[name], **told)


def check_among(name: str, value: object, known: Collection[str]) -> None:
    """Raise a ValueError that names the argument, unless the value is known."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name}: expected one of {', '.join(known)}, got {shown(value)}")


def _check_number(name: str, value: object, most: int = _LARGEST_NUMBER) -> None:
    if type(value) is not int or not 1 <= value <= most:
        raise ValueError(f"{name}: expected an integer from 1 to {most}, got {shown(value)}")


MODELS = {
    config.name: config
    for config in (
        ModelConfig("td4-psp18", "resnet-18", "pyramid", num_paths=4, head_channels=128),
        ModelConfig("td2-psp50", "resnet-50", "pyramid", num_paths=2, head_channels=256),
        ModelConfig("pspnet-18", "resnet-18", "pyramid", num_paths=1, head_channels=128),
        ModelConfig("pspnet-50", "resnet-50", "pyramid", num_paths=1, head_channels=512),
        ModelConfig("pspnet-101", "resnet-101", "pyramid", num_paths=1, head_channels=512),
        ModelConfig(
            "td4-bise18", "resnet-18", "bilateral", 4, head_channels=64, value_channels=128
        ),
        ModelConfig(
            "td2-bise34", "resnet-34", "bilateral", 2, head_channels=64, value_channels=128
        ),
        ModelConfig("bisenet-18", "resnet-18", "bilateral", num_paths=1, head_channels=256),
        ModelConfig("bisenet-34", "resnet-34", "bilateral", num_paths=1, head_channels=256),
        ModelConfig("bisenet-101", "resnet-101", "bilateral", num_paths=1, head_channels=256),
        ModelConfig("td4-lite0", "efficientnet-lite0", "fpn", 4, 64, value_channels=128),
        ModelConfig("td2-lite0", "efficientnet-lite0", "fpn", 2, 64, value_channels=128),
        ModelConfig("lite0", "efficientnet-lite0", "fpn", num_paths=1, head_channels=128),
        ModelConfig("td2-espnetv2", "espnetv2", "espnet", 2, 64, value_channels=128),
        ModelConfig("espnetv2", "espnetv2", "espnet", num_paths=1, head_channels=10),
    )
}


def model_names() -> list[str]:
    """The names that `build_model` knows."""
    return list(MODELS)
