"""Reading frames from videos, image folders and cameras, and writing segmented results.

What needs PyAV is imported when it is first asked for.
"""

from typing import TYPE_CHECKING

from tdnet.lazy import lazy_attributes
from tdnet.video.errors import VideoError
from tdnet.video.frames import Frame, FrameSource, ImageSequence
from tdnet.video.images import ImageFolder
from tdnet.video.pipeline import FrameSegmenter, InterruptFlag, segment_frames
from tdnet.video.sources import open_source
from tdnet.video.writer import FrameWriter, PngFolderWriter, open_writer

if TYPE_CHECKING:
    from tdnet.video.overlay_writer import OverlayVideoWriter
    from tdnet.video.reader import Camera, VideoFile

__all__ = [
    "Camera",
    "Frame",
    "FrameSegmenter",
    "FrameSource",
    "FrameWriter",
    "ImageFolder",
    "ImageSequence",
    "InterruptFlag",
    "OverlayVideoWriter",
    "PngFolderWriter",
    "VideoError",
    "VideoFile",
    "open_source",
    "open_writer",
    "segment_frames",
]

__getattr__ = lazy_attributes(
    __name__,
    {
        "Camera": "tdnet.video.reader",
        "OverlayVideoWriter": "tdnet.video.overlay_writer",
        "VideoFile": "tdnet.video.reader",
    },
)
