"""The loop from a source of frames through a segmenter into a writer."""

import signal
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

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
    """
    frames = iter(source)
    while not stop_requested():
        frame = next(frames, None)
        if frame is None:
            return
        begin = time.perf_counter()
        labels = segmenter.step(frame.image)
        latencies.append(time.perf_counter() - begin)
        writer.write(frame, labels)
        on_frame()
        segmenter.prepare()


class InterruptFlag:
    """Within its `with` block Ctrl-C only sets a flag, so that no file is left half written."""

    def __init__(self) -> None:
        self.interrupted = False

    def _handle(self, signal_number: int, stack_frame: FrameType | None) -> None:
        self.interrupted = True

    def __enter__(self) -> "InterruptFlag":
        self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        signal.signal(signal.SIGINT, self._previous)
