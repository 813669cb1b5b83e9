"""Models built by name or by config."""

from dataclasses import replace
from typing import Any, cast

import torch

from tdnet.architectures import MODELS, Aggregation, ModelConfig, PoolingMode, Size, check_among
from tdnet.models.single_frame import SingleFrameModel
from tdnet.models.tdnet import TDNet


def build_model(
    name: str,
    num_classes: int = 19,
    *,
    pooling_mode: PoolingMode | None = None,
    pooling_stride: int | None = None,
    norm_size: Size | None = None,
    aggregation: Aggregation | None = None,
    shared: bool | None = None,
) -> TDNet | SingleFrameModel:
    """Build a model by its name, with random weights, in training mode, in channels_last.

    Args:
        name: one of ``model_names()``; those that begin with "td" are TDNets, the others
            single-frame models.
        num_classes: K, the channels of the logits.
        pooling_mode: TDNet with attention only: gamma of Eq. 3, "max" (None means this) or
            "subsample" (what published weights expect).
        pooling_stride: TDNet with attention only: n of Eq. 3 (None means 4).
        norm_size: TDNet only: feature size at which the LayerNorm keeps its affine (None means
            97 x 193, the features of a 769 x 1537 image). Other sizes interpolate it.
        aggregation: TDNet only: "apm" (None means this), "sta", "add" or "flow"; see ModelConfig.
        shared: TDNet only: whether one sub-network takes every path (None means no).

    Raises:
        ValueError: for an unknown name, a number of classes, a stride or a size below 1, or an
            option that the model does not have.
    """
    check_among("name", name, MODELS)
    options = {
        "pooling_mode": pooling_mode,
        "pooling_stride": pooling_stride,
        "norm_size": norm_size,
        "aggregation": aggregation,
        "shared": shared,
    }
    given: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    if given and MODELS[name].num_paths == 1:
        raise ValueError(f"{name} is a single-frame model and has no {', '.join(given)}")
    pooling = [key for key in ("pooling_mode", "pooling_stride") if key in given]
    if pooling and aggregation in ("add", "flow"):
        raise ValueError(
            f"{name} with aggregation {aggregation} pools nothing and has no {', '.join(pooling)}"
        )
    return build(replace(MODELS[name], num_classes=num_classes, **given))


def build(config: ModelConfig) -> TDNet | SingleFrameModel:
    """Build a model with random weights, in training mode, its weights in channels_last."""
    model = SingleFrameModel(config) if config.num_paths == 1 else TDNet(config)
    # The type hints of "to" miss this argument in some versions of torch.
    return cast(Any, model).to(memory_format=torch.channels_last)
