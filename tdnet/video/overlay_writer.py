"""An overlay video on disk, encoded by PyAV, never half written under its final name."""

import os
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import av.error
import numpy as np
from av.codec.codec import Codec, UnknownCodecError
from av.container import OutputContainer
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream
from numpy.typing import NDArray

from tdnet.data.palette import overlay
from tdnet.files import temporary_beside
from tdnet.video.containers import cut_after_last_fragment
from tdnet.video.errors import VideoError, reason
from tdnet.video.frames import Frame
from tdnet.video.reader import ffmpeg_name

CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
# Best first. All but libx264 leave odd sizes to MPEG-4 part 2.
ENCODERS = ("libx264", "libopenh264", "mpeg4")
_ENCODER_OPTIONS = {
    # No B-frames: with them MP4 miscounts the length of a video of variable frame rate.
    "libx264": {"preset": "veryfast", "crf": "18", "bf": "0"},
    "libopenh264": {},
    "mpeg4": {"qmin": "2", "qmax": "6"},
}
# MP4 has one index, written last. Until it is, an index for each second stands in the file, so that
# the frames of a file that cannot be finished (full disk) can be read nevertheless.
# An edit list keeps a first frame that is not shown at once in its place.
_FRAGMENTS = {
    "movflags": "hybrid_fragmented+delay_moov",
    "frag_duration": "1000000",
}
_FRAGMENTED = ("mp4", "mov")
# The frame header of MPEG-4 part 2 counts ticks in 16 bits; 60000 a second fit 25, 30, 60 and
# the 1001-based rates exactly.
_MPEG4_MOST_TICKS = 65535
_MPEG4_TICK = Fraction(1, 60000)
_BITS_A_PIXEL = 0.3  # for the encoders without a constant-quality mode


class OverlayVideoWriter:
    """Frames blended with the colours of their labels, as H.264 or else MPEG-4 part 2.

    The video is written to a temporary file beside path; leaving the `with` block, for whatever
    reason, finishes the file and renames it, if at least one frame was written. When finishing
    itself fails, the frames that did reach the disk are kept. Even sizes are
    stored as 4:2:0. H.264 cannot crop 4:2:0 pictures to odd sizes, so these are stored as 4:4:4
    (exact size; desktop players and FFmpeg play it, some browsers do not).
    """

    def __init__(self, path: Path, frame_rate: Fraction, time_base: Fraction, alpha: float):
        """Check what can be checked without touching the disk.

        Args:
            path: final name; the suffix chooses the container, one of CONTAINERS.
            frame_rate: frames a second (the average where it varies).
            time_base: a tick in seconds of which frame times are multiples.
            alpha: weight of the label colours, 0 to 1.

        Raises:
            VideoError: the suffix names no container, or no video encoder is installed.
        """
        if path.suffix.lower() not in CONTAINERS:
            raise VideoError(
                f"{path}: expected a name ending in {', '.join(CONTAINERS)}, or a folder "
                f"(ending in /), got {path.suffix!r}"
            )
        self.path = path
        # A link stays one: what it names is replaced.
        self._target = Path(os.path.realpath(path))
        self.frames_written = 0
        self._container_format = CONTAINERS[path.suffix.lower()]
        self._frame_rate = frame_rate
        self._time_base = time_base
        self._alpha = alpha
        self._container: OutputContainer | None = None
        self._stream: VideoStream | None = None
        self._durations: dict[int, int] = {}
        self._last_stamp: int | None = None
        self._temporary = temporary_beside(self._target)
        require_encoder()

    def write(self, frame: Frame, labels: NDArray[np.uint8]) -> None:
        """Append a frame of the size of the first one; labels is uint8 [H, W].

        Raises:
            VideoError: encoding or writing failed.
            ValueError: the size differs from the first frame's.
        """
        picture = overlay(frame.image, labels, self._alpha)
        try:
            if self._stream is None:
                self._open(frame)
            self._encode(picture, frame)
        except (av.error.FFmpegError, OSError) as error:
            raise VideoError(f"{self.path}: cannot be written: {reason(error)}") from error
        self.frames_written += 1

    def _open(self, frame: Frame) -> None:
        height, width = frame.image.shape[:2]
        encoder, pixel_format = choose_encoder(height, width)
        self._container = av.open(
            ffmpeg_name(self._temporary),
            "w",
            format=self._container_format,
            options=_FRAGMENTS if self._container_format in _FRAGMENTED else {},
        )
        tick = self._time_base
        if encoder == "mpeg4" and tick.denominator > _MPEG4_MOST_TICKS:
            tick = _MPEG4_TICK
        stream = self._container.add_stream(
            encoder, rate=self._frame_rate, options=_ENCODER_OPTIONS[encoder]
        )
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        stream.time_base = stream.codec_context.time_base = tick
        context = stream.codec_context
        context.sample_aspect_ratio = frame.pixel_aspect
        context.colorspace = Colorspace.ITU709
        context.color_range = ColorRange.MPEG
        context.color_primaries = context.color_trc = 1  # BT.709 in ITU-T H.273
        if encoder != "libx264":
            context.bit_rate = round(_BITS_A_PIXEL * width * height * self._frame_rate)
        self._stream = stream
        self._tick = tick

    def _encode(self, picture: NDArray[np.uint8], frame: Frame) -> None:
        assert self._stream is not None
        expected = (self._stream.height, self._stream.width)
        if picture.shape[:2] != expected:
            raise ValueError(
                f"frame {frame.name}: the size changed from {expected[0]}x{expected[1]} "
                f"to {picture.shape[0]}x{picture.shape[1]}"
            )
        video_frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(
            format=self._stream.pix_fmt,
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
        )
        stamp = round(frame.time / self._tick)
        if self._last_stamp is not None:
            stamp = max(stamp, self._last_stamp + 1)
        self._last_stamp = stamp
        video_frame.pts, video_frame.time_base = stamp, self._tick
        self._durations[stamp] = round(frame.duration / self._tick)
        self._mux(video_frame)

    def _mux(self, video_frame: av.VideoFrame | None) -> None:
        assert self._stream is not None
        assert self._container is not None
        for packet in self._stream.encode(video_frame):
            # The container needs the duration of the last packet for the length of the video.
            if packet.pts is not None:
                packet.duration = max(1, self._durations.pop(packet.pts, 1))
            self._container.mux(packet)

    def __enter__(self) -> "OverlayVideoWriter":
        """Reserve the temporary file, so that an unwritable place is known before any work."""
        if self._target.exists() and not self._target.is_file():
            raise VideoError(f"{self.path}: cannot be written: it exists and is no regular file")
        try:
            self._temporary.open("xb").close()
        except OSError as error:
            raise VideoError(f"{self.path}: cannot be written: {error.strerror}") from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if self._container is None:
                return
            if self.frames_written:
                self._mux(None)
            self._container.close()
            if self.frames_written:
                os.replace(self._temporary, self._target)
        except (av.error.FFmpegError, OSError) as failure:
            self._salvage()
            raise VideoError(
                f"{self.path}: the video cannot be finished: {reason(failure)}"
            ) from failure
        finally:
            self._temporary.unlink(missing_ok=True)

    def _salvage(self) -> None:
        """Keep what can be read of a video that could not be finished, up to a whole second."""
        if self._container_format in _FRAGMENTED:
            cut_after_last_fragment(self._temporary)
        self.frames_written = _readable_frames(self._temporary)
        if self.frames_written:
            os.replace(self._temporary, self._target)


def _readable_frames(path: Path) -> int:
    """Frames of the video that can be decoded."""
    frames = 0
    try:
        with av.open(ffmpeg_name(path)) as container:
            for _ in container.decode(video=0):
                frames += 1
    except av.error.FFmpegError:
        pass
    return frames


def available_encoders() -> list[str]:
    """The names of ENCODERS that the installed PyAV has, best first."""
    return [name for name in ENCODERS if _is_encoder(name)]


def _is_encoder(name: str) -> bool:
    try:
        return Codec(name, "w").is_encoder
    except UnknownCodecError:
        return False


def require_encoder() -> None:
    """Raise VideoError if no usable video encoder is installed."""
    if not available_encoders():
        raise VideoError(
            f"the installed PyAV {av.__version__} has none of the video encoders "
            f"{', '.join(ENCODERS)}; write PNGs into a folder instead (-o DIR/)"
        )


def choose_encoder(height: int, width: int) -> tuple[str, str]:
    """Encoder and pixel format for frames of a size.

    Raises:
        VideoError: no encoder is installed that can keep the size.
    """
    odd = height % 2 == 1 or width % 2 == 1
    for name in available_encoders():
        if name == "libx264":
            return name, "yuv444p" if odd else "yuv420p"
        if name == "mpeg4" or not odd:
            return name, "yuv420p"
    raise VideoError(
        f"no installed encoder stores frames of {height}x{width}; "
        "write PNGs into a folder instead (-o DIR/)"
    )
