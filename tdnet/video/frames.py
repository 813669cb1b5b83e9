"""What a reader hands over: frames with their times, and a source of them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Frame:
    """One upright picture.

    Attributes:
        image: uint8 [H, W, 3], RGB.
        time: presentation time in seconds, exact; strictly increasing within a source.
        duration: how long the picture is shown, in seconds.
        name: how to name files made from this frame (no suffix).
        pixel_aspect: width of a pixel over its height.
    """

    image: NDArray[np.uint8]
    time: Fraction
    duration: Fraction
    name: str
    pixel_aspect: Fraction = Fraction(1)


class FrameSource(Protocol):
    """Frames in order, read once.

    Attributes:
        label: the name for messages.
        frame_rate: frames a second (an average where the rate varies).
        time_base: a tick in seconds that all frame times are multiples of.
        frame_count: the number of frames, None if unknown.
    """

    label: str
    frame_rate: Fraction
    time_base: Fraction
    frame_count: int | None

    def __iter__(self) -> Iterator[Frame]: ...


class ImageSequence:
    """Images from a program, at a constant rate."""

    def __init__(
        self,
        images: Iterable[NDArray[np.uint8]],
        frame_count: int,
        frame_rate: Fraction,
        label: str,
    ):
        """Take frame_count images, uint8 [H, W, 3] RGB, shown at frame_rate a second."""
        self.label = label
        self.frame_rate = frame_rate
        self.time_base = 1 / frame_rate
        self.frame_count: int | None = frame_count
        self._images = images

    def __iter__(self) -> Iterator[Frame]:
        for index, image in enumerate(self._images):
            yield Frame(image, index * self.time_base, self.time_base, f"{index:06d}")
