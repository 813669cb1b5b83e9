"""TDNet, its single-frame baselines and the registry that builds them by name."""

from tdnet.architectures import ModelConfig, model_names
from tdnet.models.registry import build, build_model
from tdnet.models.single_frame import SingleFrameModel
from tdnet.models.stream import StreamingModel
from tdnet.models.tdnet import TDNet

__all__ = [
    "ModelConfig",
    "SingleFrameModel",
    "StreamingModel",
    "TDNet",
    "build",
    "build_model",
    "model_names",
]
