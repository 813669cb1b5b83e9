"""Opens what a user named."""

import re
import stat
from fractions import Fraction
from pathlib import Path

from tdnet.video.errors import VideoError, needs_pyav
from tdnet.video.frames import FrameSource
from tdnet.video.images import ImageFiles, ImageFolder, is_animation, is_image_name


def open_source(source: str, frame_rate: Fraction) -> FrameSource:
    """Open a video file, a pipe, an image, a folder of images, or a camera.

    Args:
        source: a path, "-" for the standard input, or digits for a camera (an existing path wins).
        frame_rate: frames a second for images, which have no rate of their own.

    Raises:
        VideoError: nothing of that name can be read.
    """
    path = Path("/dev/stdin" if source == "-" else source)
    if path.is_dir():
        return ImageFolder(path, frame_rate)
    if path.is_file() and is_image_name(path) and not is_animation(path):
        return ImageFiles([path], frame_rate, source)
    camera = _camera_index(path)
    if camera is None and not path.exists():
        raise VideoError(f"{source}: {_why_missing(source)}")
    with needs_pyav(f"{source}: reading a video"):
        from tdnet.video.reader import Camera, VideoFile
    return VideoFile(path) if camera is None else Camera(int(camera))


def _camera_index(path: Path) -> str | None:
    """Digits of the camera that a path names, such as 0 or /dev/video0."""
    if not path.exists():
        match = re.fullmatch(r"([0-9]+)", str(path), re.ASCII)
    elif stat.S_ISCHR(path.stat().st_mode):
        match = re.fullmatch(r"/dev/video([0-9]+)", str(path), re.ASCII)
    else:
        return None
    return None if match is None else match[1]


def _why_missing(source: str) -> str:
    if re.match(r"[a-z][a-z0-9+.-]+://", source, re.IGNORECASE):
        return "addresses are not read; download the video, or pipe it in and name it -"
    if re.search(r"%[0-9]*d|[*?]", source):
        return "no such file; for a sequence of images give their folder"
    return "no such file, folder or camera"
