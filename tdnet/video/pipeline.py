"""The loop from a source of frames through a segmenter into a writer."""

import signal
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tdnet.video.errors import VideoError
from tdnet.video.frames import FrameSource
from tdnet.video.writer import FrameWriter


class FrameSegmenter(Protocol):
    """What `tdnet.VideoSegmenter` is to this loop."""

    def step(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]: ...

    def prepare(self) -> None: ...


def segment_frames(
    source: FrameSource,
    segmenter: FrameSegmenter,
    writer: FrameWriter,
    latencies: list[float],
    stop_requested: Callable[[], bool],
    on_frame: Callable[[], None],
) -> None:
    """Segment and write every frame of a source, until it ends or a stop is requested.

    Args:
        source: the frames.
        segmenter: `.step` maps uint8 [H, W, 3] to labels uint8 [H, W]; `.prepare`, called after
            each written frame, does the part of the next frame that needs no new image.
        writer: entered by the caller, so that it finishes the result however this loop ends.
        latencies: gets the seconds of `.step` for each frame, from image to labels.
        stop_requested: asked before each frame.
        on_frame: called after each written frame.

    Raises:
        VideoError: the size of the frames changes.
    """
    frames = iter(source)
    size: tuple[int, ...] | None = None
    while not stop_requested():
        frame = next(frames, None)
        if frame is None:
            return
        size = size or frame.image.shape[:2]
        if frame.image.shape[:2] != size:
            raise VideoError(
                f"{source.label}: frame {frame.name}: the size changed from {size[0]}x{size[1]} to "
                f"{frame.image.shape[0]}x{frame.image.shape[1]} (height x width)"
            )
        begin = time.perf_counter()
        labels = segmenter.step(frame.image)
        latencies.append(time.perf_counter() - begin)
        writer.write(frame, labels)
        on_frame()
        segmenter.prepare()


class InterruptFlag:
    """Within its `with` block a request to end only sets a flag, so that no file is half written.

    Such are Ctrl-C, SIGTERM (`kill`, a shutdown) and SIGHUP (the terminal was closed); one that
    was ignored before stays so (`nohup`).

    Attributes:
        signal: the signal that came, None so far.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def _handle(self, signal_number: int, stack_frame: FrameType | None) -> None:
        self.signal = self.signal or signal.Signals(signal_number)

    def __enter__(self) -> "InterruptFlag":
        self._previous = {
            number: signal.signal(number, self._handle)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
            if signal.getsignal(number) is not signal.SIG_IGN
        }
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
