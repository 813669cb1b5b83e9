"""TDNet, its single-frame baselines and the registry that builds them by name."""

from tdnet.architectures import model_names
from tdnet.models.config import ModelConfig
from tdnet.models.pspnet import PSPNet
from tdnet.models.registry import build_model
from tdnet.models.tdnet import TDNet

__all__ = ["ModelConfig", "PSPNet", "TDNet", "build_model", "model_names"]
