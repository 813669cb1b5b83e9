"""Frames of a video file or a camera, read by PyAV."""

import stat
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
from av.stream import Disposition
from av.video.stream import VideoStream
from numpy.typing import NDArray

from tdnet.video.clock import LONGEST_GAP_OF_A_BROKEN_TIME_LINE, Clock
from tdnet.video.containers import declared_size
from tdnet.video.errors import VideoError, reason
from tdnet.video.frames import Frame

_FALLBACK_RATE = Fraction(25)
_HIGHEST_RATE = 1000  # above it is no rate but the ticks of a stream with a single picture
_CAMERA_TIMEOUT_SECONDS = 10.0
_LONGEST_REORDERING = 4  # frames by which encoders put off the first one, for their B-frames
_LATEST_START = Fraction(10)
_REACH_OF_A_BREAK = 2  # packets that FFmpeg's buffers lie between the end of a stream and the next


class VideoFile:
    """The main video stream of a file or pipe, upright, with the times of the file.

    Times count from the start of the container: a transport stream may begin at any hour. Other
    files begin at 0, and a late start of the video is kept.
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
        self._is_pipe = False
        try:
            status = path.stat()
            self._is_pipe = stat.S_ISFIFO(status.st_mode)
            if stat.S_ISREG(status.st_mode):
                self._missing_bytes = _missing_bytes(path, status.st_size)
            elif not self._is_pipe:
                raise VideoError(f"{path}: neither a file nor a pipe")
            self._container = av.open(ffmpeg_name(path))
        except av.error.FFmpegError as error:
            raise VideoError(f"{path}: cannot be read as a video: {self._why(error)}") from error
        except OSError as error:
            raise VideoError(f"{path}: {error.strerror}") from error
        try:
            self._stream = _video_stream(self._container)
        except ValueError as error:
            raise VideoError(f"{path}: {self._truncation() or error}") from error
        self.frame_rate = _frame_rate(self._stream)
        self._clock = Clock(
            self._stream.time_base or 1 / self.frame_rate,
            self.frame_rate,
            _time_zero(self._container, self.frame_rate),
            _may_break(self._container),
        )
        self.time_base = self._clock.tick
        self.frame_count = _frame_count(self._container, self._stream, self.frame_rate)

    def __iter__(self) -> Iterator[Frame]:
        decoder = _Decoder(self._container, self._stream)
        expected_packets = self._stream.frames
        index = -1
        with self._container:
            for index, picture in enumerate(decoder):
                yield _frame(picture, self._clock, self._stream, index)
        # An end may be missing that held none of the frames, or never was.
        all_read = not decoder.damaged_packets and 0 < expected_packets <= decoder.packets
        if (truncation := self._truncation()) and not all_read:
            raise VideoError(f"{self.label}: {truncation}")
        if index < 0:
            raise VideoError(f"{self.label}: no frame of the video can be decoded")
        if decoder.damaged_packets:
            count = decoder.damaged_packets
            raise VideoError(f"{self.label}: the file is damaged ({count} unreadable packets)")

    def _why(self, error: Exception) -> str:
        if self._is_pipe:
            return f"{reason(error)} (a pipe cannot be read backwards, as some files must be)"
        return self._truncation() or reason(error)

    def _truncation(self) -> str | None:
        if self._missing_bytes == 0:
            return None
        return f"the file is truncated ({self._missing_bytes} bytes are missing at its end)"


def ffmpeg_name(path: Path) -> str:
    """What FFmpeg takes for exactly this path, colons and all."""
    return f"file:{path}"


def _missing_bytes(path: Path, size: int) -> int:
    if size == 0:
        raise VideoError(f"{path}: the file is empty")
    return max(0, (declared_size(path) or 0) - size)


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
            raise VideoError(f"camera {index} cannot be opened: {reason(error)}") from error
        self.frame_rate = _frame_rate(self._stream)
        self._clock = Clock(self._stream.time_base or 1 / self.frame_rate, self.frame_rate)
        self.time_base = self._clock.tick
        self.frame_count: int | None = None

    def __iter__(self) -> Iterator[Frame]:
        decoder = _Decoder(self._container, self._stream)
        with self._container:
            for index, picture in enumerate(decoder):
                yield _frame(picture, self._clock, self._stream, index)
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
    """Decodes all that can be decoded of a stream, counting what cannot.

    A packet that is called corrupt is cut off and left out. In transport streams the numbering has
    a gap beside it, which is no damage where another stream was appended: where time breaks too.
    """

    def __init__(self, container: InputContainer, stream: VideoStream):
        self._container = container
        self._stream = stream
        self._may_break = _may_break(container)
        self._last_stamp: Fraction | None = None
        self._breaks: list[int] = []  # numbers of packets, as the next
        self._suspects: list[int] = []
        self._undecodable = 0
        self.packets = 0

    @property
    def damaged_packets(self) -> int:
        """How many packets so far could not be decoded as they were encoded."""
        return self._undecodable + sum(
            all(abs(suspect - place) > _REACH_OF_A_BREAK for place in self._breaks)
            for suspect in self._suspects
        )

    def __iter__(self) -> Iterator[av.VideoFrame]:
        self._stream.thread_type = "AUTO"
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except av.error.FFmpegError:
                self._undecodable += 1
                yield from self._stream.decode(None)
                return
            yield from self._decode(packet)

    def _decode(self, packet: "av.Packet[VideoStream]") -> list[av.VideoFrame]:
        self.packets += packet.size > 0
        if self._may_break:
            self._look_for_breaks(packet)
        try:
            if not packet.is_corrupt or self._may_break:
                return packet.decode()
        except av.error.FFmpegError:
            pass
        self._undecodable += 1
        return []

    def _look_for_breaks(self, packet: "av.Packet[VideoStream]") -> None:
        if packet.is_corrupt:
            self._suspects.append(self.packets)
        if packet.dts is None or packet.time_base is None:
            return
        stamp = packet.dts * packet.time_base
        if self._last_stamp is not None:
            gap = stamp - self._last_stamp
            if gap <= 0 or gap > LONGEST_GAP_OF_A_BROKEN_TIME_LINE:
                self._breaks.append(self.packets)
        self._last_stamp = stamp


def _frame(picture: av.VideoFrame, clock: Clock, stream: VideoStream, index: int) -> Frame:
    tick = picture.time_base or stream.time_base
    stamp = None if picture.pts is None or tick is None else picture.pts * tick
    time, duration = clock.next(stamp, picture.duration * tick if tick is not None else None)
    aspect = stream.sample_aspect_ratio or Fraction(1)
    pixels = picture.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
    image, transposed = upright(pixels, display_matrix(picture))
    return Frame(image, time, duration, f"{index:06d}", 1 / aspect if transposed else aspect)


def display_matrix(picture: av.VideoFrame) -> NDArray[np.int32] | None:
    """The 3x3 display matrix that a camera stored with the video, None without one."""
    try:
        # PyAV declares its side data as a dict of strings; it is a container of buffers.
        data = cast(SideDataContainer, picture.side_data).get("DISPLAYMATRIX")
    except ValueError:  # beside it is some of a kind that PyAV does not know, such as EXIF
        return _rotation_matrix(picture.rotation)
    return None if data is None else np.frombuffer(bytes(data), dtype=np.int32).reshape(3, 3)


def _rotation_matrix(degrees: int) -> NDArray[np.int32]:
    """The display matrix of a turn counterclockwise, to the nearest quarter."""
    cosine, sine = [(1, 0), (0, 1), (-1, 0), (0, -1)][round(degrees / 90) % 4]
    matrix = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1 << 14]])
    return (matrix << 16).astype(np.int32)


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
    try:
        return _main_video_stream(container)
    except ValueError:
        container.close()
        raise


def _main_video_stream(container: InputContainer) -> VideoStream:
    best = container.streams.best("video")
    if best is None:
        raise ValueError("the file holds no video stream")
    moving = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not moving:
        raise ValueError("the file holds no video, only a cover picture")
    stream = next((stream for stream in moving if stream.index == best.index), moving[0])
    # PyAV gives streams without a decoder no codec context, whatever its type hints say.
    if getattr(stream, "codec_context", None) is None:
        raise ValueError("the installed PyAV has no decoder for this video")
    return stream


def _may_break(container: InputContainer) -> bool:
    """Whether the time line of the container's format may start and break anywhere."""
    avfmt_ts_discont = 0x0200
    return bool(container.format.flags & avfmt_ts_discont)


def _time_zero(container: InputContainer, frame_rate: Fraction) -> Fraction:
    """The time stamp that is time 0, in seconds."""
    start = Fraction(container.start_time or 0, av.time_base)
    is_late = _LONGEST_REORDERING / frame_rate < start <= _LATEST_START
    return Fraction(0) if is_late and not _may_break(container) else start


def _frame_rate(stream: VideoStream) -> Fraction:
    rates = (stream.average_rate, stream.guessed_rate)
    return next((rate for rate in rates if rate and 0 < rate <= _HIGHEST_RATE), _FALLBACK_RATE)


def _frame_count(
    container: InputContainer, stream: VideoStream, frame_rate: Fraction
) -> int | None:
    if stream.frames:
        return stream.frames
    if container.duration:
        return round(Fraction(container.duration, av.time_base) * frame_rate)
    return None
