"""Frames of a video file, an image folder or a camera."""

import math
import re
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.sidedata.sidedata import SideDataContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from tdnet.video.containers import declared_size
from tdnet.video.errors import VideoError
from tdnet.video.frames import Frame, FrameSource

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
_FALLBACK_RATE = Fraction(25)
_CAMERA_TIMEOUT_SECONDS = 10.0
# MP4 counts the ticks that a frame is shown in 32 bits: at a microsecond that is over an hour.
_MOST_TICKS_A_SECOND = 1_000_000


def open_source(source: str, frame_rate: Fraction) -> FrameSource:
    """Open what a user named: a video file, a folder of PNG / JPEG images, or a camera index.

    Args:
        source: a path, or digits for a camera (an existing path wins).
        frame_rate: frames a second for an image folder, which has no rate of its own.

    Raises:
        VideoError: nothing of that name can be read.
    """
    path = Path(source)
    if path.is_dir():
        return ImageFolder(path, frame_rate)
    if path.exists():
        return VideoFile(path)
    if source.isdecimal():
        return Camera(int(source))
    raise VideoError(f"{source}: no such file, folder or camera")


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key under which frame2 comes before frame10."""
    parts = re.split(r"([0-9]+)", name)
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts]


class ImageFolder:
    """The PNG and JPEG images of a folder in natural order, EXIF orientation applied."""

    def __init__(self, folder: Path, frame_rate: Fraction):
        """List the folder.

        Raises:
            VideoError: it holds no PNG or JPEG image or cannot be listed.
        """
        try:
            paths = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES]
        except OSError as error:
            raise VideoError(f"{folder}: {error.strerror}") from error
        # Hidden files are no frames: copies between systems leave "._name.png" beside the images.
        self._paths = sorted(
            (path for path in paths if not path.name.startswith(".")),
            key=lambda path: natural_key(path.name),
        )
        if not self._paths:
            raise VideoError(f"{folder}: the folder holds no PNG or JPEG images")
        self.label = str(folder)
        self.frame_rate = frame_rate
        self.time_base = 1 / frame_rate
        self.frame_count: int | None = len(self._paths)

    def __iter__(self) -> Iterator[Frame]:
        stems_differ = len({path.stem for path in self._paths}) == len(self._paths)
        for index, path in enumerate(self._paths):
            name = path.stem if stems_differ else path.name
            yield Frame(_read_image(path), index * self.time_base, self.time_base, name)


def _read_image(path: Path) -> NDArray[np.uint8]:
    try:
        with Image.open(path) as image:
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except UnidentifiedImageError as error:
        raise VideoError(f"{path}: not a readable image") from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise VideoError(f"{path}: {error}") from error


class VideoFile:
    """The first video stream of a file, upright, with the times of the file.

    Times count from the start of the container (a transport stream may begin at any hour).
    What cannot be decoded is left out; after the last good frame, iteration raises VideoError
    if anything was, if the end of the file is missing, or if there was no frame at all.
    """

    def __init__(self, path: Path):
        """Open the file.

        Raises:
            VideoError: it is empty, truncated before its index, or holds no video.
        """
        self.label = str(path)
        self._missing_bytes = 0
        try:
            size = path.stat().st_size
            if size == 0:
                raise VideoError(f"{path}: the file is empty")
            self._missing_bytes = max(0, (declared_size(path) or 0) - size)
            self._container = av.open(str(path))
        except av.error.FFmpegError as error:
            reason = self._truncation() or _reason(error)
            raise VideoError(f"{path}: cannot be read as a video: {reason}") from error
        except OSError as error:
            raise VideoError(f"{path}: {error.strerror}") from error
        try:
            self._stream = _video_stream(self._container)
        except ValueError as error:
            raise VideoError(f"{path}: {self._truncation() or error}") from error
        self.frame_rate = _frame_rate(self._stream)
        self.time_base = _common_tick(self._stream, self.frame_rate)
        self.frame_count = _frame_count(self._container, self._stream, self.frame_rate)

    def __iter__(self) -> Iterator[Frame]:
        decoder = _Decoder(self._container, self._stream)
        start = Fraction(self._container.start_time or 0, av.time_base)
        index = -1
        with self._container:
            clock = _Clock(self._stream, self.frame_rate, self.time_base, start)
            for index, picture in enumerate(decoder):
                yield _frame(picture, clock, self._stream, index)
        if truncation := self._truncation():
            raise VideoError(f"{self.label}: {truncation}")
        if index < 0:
            raise VideoError(f"{self.label}: no frame of the video can be decoded")
        if decoder.damaged_packets:
            raise VideoError(
                f"{self.label}: the file is damaged ({decoder.damaged_packets} unreadable packets)"
            )

    def _truncation(self) -> str | None:
        if self._missing_bytes == 0:
            return None
        return f"the file is truncated ({self._missing_bytes} bytes are missing at its end)"


class Camera:
    """A camera of this machine, until it is unplugged or the caller stops reading."""

    def __init__(self, index: int):
        """Open camera number index (0 is the first).

        Raises:
            VideoError: there is no such camera, or it cannot be opened.
        """
        self.label = f"camera {index}"
        try:
            file, driver = _camera_address(index)
            self._container = av.open(file, format=driver, timeout=_CAMERA_TIMEOUT_SECONDS)
            self._stream = _video_stream(self._container)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise VideoError(f"camera {index} cannot be opened: {_reason(error)}") from error
        self.frame_rate = _frame_rate(self._stream)
        self.time_base = _common_tick(self._stream, self.frame_rate)
        self.frame_count: int | None = None

    def __iter__(self) -> Iterator[Frame]:
        decoder = _Decoder(self._container, self._stream)
        with self._container:
            clock = _Clock(self._stream, self.frame_rate, self.time_base, start=None)
            for index, picture in enumerate(decoder):
                yield _frame(picture, clock, self._stream, index)
        raise VideoError(f"{self.label}: the camera stopped sending frames")


def _camera_address(index: int) -> tuple[str, str]:
    """Name and FFmpeg input format of a camera on this operating system."""
    if sys.platform == "darwin":
        return f"{index}:none", "avfoundation"
    if sys.platform == "win32":
        devices = av.enumerate_input_devices("dshow")
        names = [device.name for device in devices if "video" in device.media_types]
        if index >= len(names):
            raise ValueError(f"there are {len(names)} cameras")
        return f"video={names[index]}", "dshow"
    return f"/dev/video{index}", "v4l2"


class _Decoder:
    """Decodes all that can be decoded of a stream, counting what cannot."""

    def __init__(self, container: InputContainer, stream: VideoStream):
        self._container = container
        self._stream = stream
        self.damaged_packets = 0

    def __iter__(self) -> Iterator[av.VideoFrame]:
        self._stream.thread_type = "AUTO"
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except av.error.FFmpegError:
                self.damaged_packets += 1
                yield from self._stream.decode(None)
                return
            yield from self._decode(packet)

    def _decode(self, packet: "av.Packet[VideoStream]") -> list[av.VideoFrame]:
        try:
            if not packet.is_corrupt:
                return packet.decode()
        except av.error.FFmpegError:
            pass
        self.damaged_packets += 1
        return []


class _Clock:
    """Turns the time stamps of decoded pictures into exact, strictly increasing seconds."""

    def __init__(
        self, stream: VideoStream, frame_rate: Fraction, tick: Fraction, start: Fraction | None
    ):
        """Count from start, in seconds of the stream; from the first picture if it is None."""
        self._stream_tick = stream.time_base or tick
        self._frame_duration = 1 / frame_rate
        self._tick = tick
        self._rounded = _is_coarse(self._stream_tick, frame_rate)
        self._start = None if start is None else _nearest_multiple(start, self._stream_tick)
        self._last: Fraction | None = None

    def next(self, picture: av.VideoFrame) -> tuple[Fraction, Fraction]:
        """Time and duration of a picture, in seconds."""
        time = self._time(picture)
        if self._last is not None and time <= self._last:
            time = self._last + self._tick
        self._last = time
        return time, self._duration(picture)

    def _time(self, picture: av.VideoFrame) -> Fraction:
        if picture.pts is None or picture.time_base is None:
            return Fraction(0) if self._last is None else self._last + self._frame_duration
        stamp = picture.pts * picture.time_base
        if self._start is None or (self._last is None and stamp < self._start):
            self._start = stamp
        return self._undo_rounding(stamp - self._start)

    def _undo_rounding(self, time: Fraction) -> Fraction:
        """The multiple of the frame duration that the container rounded to its own ticks.

        Matroska stores milliseconds: 0.033 s at 30000/1001 frames a second means 1001/30000 s.
        """
        exact = _nearest_multiple(time, self._frame_duration)
        if self._rounded and 2 * abs(exact - time) <= self._stream_tick:
            return exact
        return _nearest_multiple(time, self._tick)

    def _duration(self, picture: av.VideoFrame) -> Fraction:
        if not picture.duration or picture.time_base is None:
            return self._frame_duration
        duration = picture.duration * picture.time_base
        if self._rounded and abs(duration - self._frame_duration) <= self._stream_tick:
            return self._frame_duration
        return duration


def _nearest_multiple(value: Fraction, unit: Fraction) -> Fraction:
    return round(value / unit) * unit


def _frame(picture: av.VideoFrame, clock: _Clock, stream: VideoStream, index: int) -> Frame:
    time, duration = clock.next(picture)
    aspect = stream.sample_aspect_ratio or Fraction(1)
    pixels = picture.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
    image, transposed = upright(pixels, display_matrix(picture))
    return Frame(image, time, duration, f"{index:06d}", 1 / aspect if transposed else aspect)


def display_matrix(picture: av.VideoFrame) -> NDArray[np.int32] | None:
    """The 3x3 display matrix that a camera stored with the video, None without one."""
    # PyAV declares the type of its side data as a dict of strings; it is a container of buffers.
    data = cast(SideDataContainer, picture.side_data).get("DISPLAYMATRIX")
    return None if data is None else np.frombuffer(bytes(data), dtype=np.int32).reshape(3, 3)


def upright(
    image: NDArray[np.uint8], matrix: NDArray[np.int32] | None
) -> tuple[NDArray[np.uint8], bool]:
    """Turn and mirror an image as its display matrix says, to the nearest quarter turn.

    The matrix maps a pixel (x, y, 1), taken as a row vector, to its place on the display.

    Returns:
        the image, and whether width and height changed places.
    """
    if matrix is None:
        return image, False
    (x_to_x, x_to_y), (y_to_x, y_to_y) = matrix[:2, :2].tolist()
    transposed = abs(x_to_y) + abs(y_to_x) > abs(x_to_x) + abs(y_to_y)
    if transposed:
        image = image.transpose(1, 0, 2)
        mirror_rows, mirror_columns = x_to_y < 0, y_to_x < 0
    else:
        mirror_rows, mirror_columns = y_to_y < 0, x_to_x < 0
    image = image[:: -1 if mirror_rows else 1, :: -1 if mirror_columns else 1]
    return np.ascontiguousarray(image), transposed


def _video_stream(container: InputContainer) -> VideoStream:
    """The main video stream; ValueError (and a closed container) if none can be decoded."""
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream):
        container.close()
        raise ValueError("the file holds no video stream")
    # PyAV gives streams without a decoder no codec context, whatever its type hints say.
    if getattr(stream, "codec_context", None) is None:
        container.close()
        raise ValueError("the installed PyAV has no decoder for this video")
    return stream


def _frame_rate(stream: VideoStream) -> Fraction:
    return stream.average_rate or stream.guessed_rate or _FALLBACK_RATE


def _common_tick(stream: VideoStream, frame_rate: Fraction) -> Fraction:
    """A tick for exact times: the stream's, if need be split to divide the frame duration."""
    tick = stream.time_base or 1 / frame_rate
    ticks_a_second = tick.denominator
    if _is_coarse(tick, frame_rate):
        ticks_a_second = math.lcm(ticks_a_second, frame_rate.numerator)
    if ticks_a_second > _MOST_TICKS_A_SECOND:
        ticks_a_second = min(tick.denominator, _MOST_TICKS_A_SECOND)
    return Fraction(1, ticks_a_second)


def _is_coarse(tick: Fraction, frame_rate: Fraction) -> bool:
    """Whether a container's tick is so long that frame times in it are visibly rounded."""
    return 200 * tick * frame_rate > 1


def _frame_count(
    container: InputContainer, stream: VideoStream, frame_rate: Fraction
) -> int | None:
    if stream.frames:
        return stream.frames
    if container.duration:
        return round(Fraction(container.duration, av.time_base) * frame_rate)
    return None


def _reason(error: Exception) -> str:
    """The message of an error without number and file name."""
    return getattr(error, "strerror", None) or str(error)
