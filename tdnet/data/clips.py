"""Videos with labels, as training and evaluation see them: clips, and windows of clips."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tdnet.data.palette import IGNORE_LABEL
from tdnet.video.images import image_paths


@dataclass(frozen=True)
class LabelledFrame:
    """Files of one frame.

    Attributes:
        image: RGB.
        labels: its label map. None: nobody labelled it.
        flow: from it to the frame before, as `tdnet.data.flow` reads it. None: nobody knows it.
    """

    image: Path
    labels: Path | None = None
    flow: Path | None = None


Clip = tuple[LabelledFrame, ...]
"""Frames of one shot, oldest first, as far apart as the data set has them."""


@dataclass(frozen=True)
class LabelledVideos:
    """A part of a data set.

    Attributes:
        clips: no window crosses from one to the next.
        class_names: K names, of the classes 0 to K-1.
        classes: class of each number in a label file, by the number; the others are ignored.
    """

    clips: tuple[Clip, ...]
    class_names: tuple[str, ...]
    classes: dict[int, int] = field(repr=False)

    def class_table(self) -> list[int]:
        """Of each number 0 to 255 in a label file: its class, or IGNORE_LABEL."""
        return [self.classes.get(number, IGNORE_LABEL) for number in range(256)]


def windows(clips: Iterable[Clip], length: int, step: int = 1) -> list[Clip]:
    """Each labelled frame with the frames before it that a network of `length` paths looks at.

    A labelled frame with too few before it in its clip has no window.

    Args:
        length: of a window, 1 or more.
        step: from frame to frame of a window, 1 or more.

    Raises:
        ValueError: length or step is below 1.
    """
    for name, value in (("length", length), ("step", step)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    found = []
    for clip in clips:
        for last in range((length - 1) * step, len(clip)):
            if clip[last].labels is not None:
                found.append(clip[last - (length - 1) * step : last + 1 : step])
    return found


def cut(frames: Sequence[tuple[int, LabelledFrame]], most_apart: int) -> list[Clip]:
    """Clips of numbered frames of one recording, each as evenly spaced as the data set has it.

    A gap larger than `most_apart` is a cut, and one half as large again as the gap before it.
    """
    clips: list[list[LabelledFrame]] = []
    previous, gap = None, 0
    for number, frame in sorted(frames, key=lambda item: item[0]):
        before = gap
        gap = 0 if previous is None else number - previous
        if previous is None or gap > most_apart or (before and 2 * gap > 3 * before):
            clips.append([])
            gap = 0
        clips[-1].append(frame)
        previous = number
    return [tuple(clip) for clip in clips]


def image_files(folder: Path) -> list[Path]:
    """The images of a folder in natural order.

    Raises:
        ValueError: there is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    found = image_paths(folder)
    if not found:
        raise ValueError(f"{folder}: the folder holds no PNG or JPEG images")
    return found


def read_labels(path: Path, table: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The classes of a label map.

    Args:
        path: of an image with 8 bits a pixel.
        table: uint8 `[256]`, the class of each number.

    Returns:
        uint8 `[H, W]`.

    Raises:
        ValueError: the image cannot be read, or has other pixels.
    """
    try:
        with Image.open(path) as image:
            if image.mode not in ("L", "P"):
                raise ValueError(
                    f"{path}: expected label numbers of 8 bits, got pixels of mode {image.mode!r}"
                )
            return table[np.asarray(image)]
    except OSError as error:
        raise ValueError(f"{path}: {error}") from error
