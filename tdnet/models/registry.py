"""Models built by name."""

from dataclasses import replace
from typing import Any, cast

import torch

from tdnet.architectures import PSPNET_DEPTHS, TDNETS, model_names
from tdnet.models.config import ModelConfig
from tdnet.models.encoding import PoolingMode
from tdnet.models.layers import Size
from tdnet.models.pspnet import PSPNet
from tdnet.models.tdnet import TDNet


def build_model(
    name: str,
    num_classes: int = 19,
    *,
    pooling_mode: PoolingMode | None = None,
    pooling_stride: int | None = None,
    norm_size: Size | None = None,
) -> TDNet | PSPNet:
    """Build a model with random weights, in training mode, its weights in channels_last.

    Args:
        name: one of ``model_names()``: "td4-psp18", "td2-psp50", "pspnet-18", "pspnet-50",
            "pspnet-101".
        num_classes: K, the channels of the logits.
        pooling_mode: TDNet only: gamma of Eq. 3, "max" (None means this) or "subsample" (what
            published weights expect).
        pooling_stride: TDNet only: n of Eq. 3 (None means 4).
        norm_size: TDNet only: feature size at which the LayerNorm keeps its affine (None means
            97 x 193, the features of a 769 x 1537 image). Other sizes interpolate it.

    Raises:
        ValueError: for an unknown name, a number of classes, a stride or a size below 1, or an
            option that the model does not have.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes: expected at least 1, got {num_classes}")
    if norm_size is not None and (len(norm_size) != 2 or min(norm_size) < 1):
        raise ValueError(f"norm_size: expected (height, width), both at least 1, got {norm_size}")
    options = {
        "pooling_mode": pooling_mode,
        "pooling_stride": pooling_stride,
        "norm_size": norm_size,
    }
    given = {option: value for option, value in options.items() if value is not None}
    config = ModelConfig(name, num_classes)
    model: TDNet | PSPNet
    if name in TDNETS:
        shape = TDNETS[name]
        config = replace(config, **given)  # type: ignore[arg-type]
        model = TDNet(config, shape.depth, shape.num_paths, shape.head_channels)
    elif name in PSPNET_DEPTHS:
        if given:
            raise ValueError(f"{name} is a single-frame model and has no {', '.join(given)}")
        model = PSPNet(config, PSPNET_DEPTHS[name])
    else:
        raise ValueError(f"name: expected one of {', '.join(model_names())}, got {name!r}")
    # The type hints of "to" miss this argument in some versions of torch.
    cast(Any, model).to(memory_format=torch.channels_last)
    return model
