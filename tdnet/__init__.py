"""Temporally distributed networks for fast video semantic segmentation."""

from tdnet import checkpoints
from tdnet.checkpoints import load_checkpoint, save_checkpoint
from tdnet.models import build_model
from tdnet.streaming import VideoSegmenter

__all__ = ["VideoSegmenter", "build_model", "checkpoints", "load_checkpoint", "save_checkpoint"]
