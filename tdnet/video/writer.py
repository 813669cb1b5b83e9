"""Results on disk: a folder of PNGs or an overlay video, never half written under a final name."""

import os
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tdnet.data.palette import colorize
from tdnet.files import temporary_beside
from tdnet.video.errors import VideoError, needs_pyav, reason
from tdnet.video.frames import Frame, FrameSource


class FrameWriter(Protocol):
    """Takes segmented frames in order; leaving the `with` block finishes what was written.

    Attributes:
        frames_written: frames that stand (or will, once finished) in the result.
        path: where the result stands.
    """

    path: Path
    frames_written: int

    def write(self, frame: Frame, labels: NDArray[np.uint8]) -> None: ...

    def __enter__(self) -> "FrameWriter": ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


def is_folder(output: str) -> bool:
    """Whether an output name means a folder: it ends in a separator or is one already."""
    return output.endswith(("/", os.sep)) or Path(output).is_dir()


def open_writer(output: str, source: FrameSource, alpha: float) -> FrameWriter:
    """Writer for an output name: a folder of PNGs (see `is_folder`) or an overlay video.

    Raises:
        VideoError: the suffix names no supported container, or no video encoder is installed.
    """
    if is_folder(output):
        return PngFolderWriter(Path(output))
    with needs_pyav(f"{output}: writing a video"):
        from tdnet.video.overlay_writer import OverlayVideoWriter
    return OverlayVideoWriter(Path(output), source.frame_rate, source.time_base, alpha)


class PngFolderWriter:
    """NAME_color.png (RGB) and NAME_label.png (8-bit train ids) for every frame.

    Each file is written beside its final name and renamed, so that none is ever half there.
    """

    def __init__(self, folder: Path):
        """Take the folder; entering the `with` block makes it if it does not exist."""
        self.path = folder
        self.frames_written = 0

    def write(self, frame: Frame, labels: NDArray[np.uint8]) -> None:
        """Write both pictures of a frame; labels is uint8 [H, W]."""
        self._save(colorize(labels), f"{frame.name}_color.png")
        self._save(labels, f"{frame.name}_label.png")
        self.frames_written += 1

    def _save(self, picture: NDArray[np.uint8], name: str) -> None:
        final = self.path / name
        temporary = temporary_beside(final)
        try:
            Image.fromarray(picture).save(temporary, format="PNG")
            os.replace(temporary, final)
        except OSError as error:
            raise VideoError(f"{final}: cannot be written: {reason(error)}") from error
        finally:
            temporary.unlink(missing_ok=True)

    def __enter__(self) -> "PngFolderWriter":
        """Make the folder and try it, so that an unwritable place is known before any work."""
        probe = temporary_beside(self.path / "probe")
        try:
            self.path.mkdir(exist_ok=True)
            probe.touch(exist_ok=False)
            probe.unlink()
        except OSError as error:
            raise VideoError(f"{self.path}: cannot be written: {error.strerror}") from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass
