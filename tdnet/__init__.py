"""Temporally distributed networks for fast video semantic segmentation."""

from typing import TYPE_CHECKING

from tdnet.lazy import lazy_attributes

if TYPE_CHECKING:
    from tdnet import checkpoints
    from tdnet.checkpoints import load_checkpoint, save_checkpoint
    from tdnet.engine import optimize
    from tdnet.models import build_model
    from tdnet.streaming import VideoSegmenter

__all__ = [
    "VideoSegmenter",
    "build_model",
    "checkpoints",
    "load_checkpoint",
    "optimize",
    "save_checkpoint",
]

__getattr__ = lazy_attributes(
    __name__,
    {
        "VideoSegmenter": "tdnet.streaming",
        "build_model": "tdnet.models",
        "checkpoints": "tdnet.checkpoints",
        "load_checkpoint": "tdnet.checkpoints",
        "optimize": "tdnet.engine",
        "save_checkpoint": "tdnet.checkpoints",
    },
)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
