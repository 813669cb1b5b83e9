"""Reading frames from videos, image folders and cameras, and writing segmented results."""

from tdnet.video.errors import VideoError
from tdnet.video.frames import Frame, FrameSource, ImageSequence
from tdnet.video.pipeline import FrameSegmenter, InterruptFlag, segment_frames
from tdnet.video.reader import Camera, ImageFolder, VideoFile, open_source
from tdnet.video.writer import FrameWriter, OverlayVideoWriter, PngFolderWriter, open_writer

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
