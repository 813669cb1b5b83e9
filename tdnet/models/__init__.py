"""TDNet, its single-frame baselines and the registry that builds them by name."""

from tdnet.architectures import ModelConfig, model_names
from tdnet.models.pspnet import PSPNet
from tdnet.models.registry import build, build_model
from tdnet.models.stream import StreamingModel
from tdnet.models.tdnet import TDNet

__all__ = [
    "ModelConfig",
    "PSPNet",
    "StreamingModel",
    "TDNet",
    "build",
    "build_model",
    "model_names",
]
