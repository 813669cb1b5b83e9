"""Windows of labelled videos as a data set of PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tdnet.data.batches import Sample
from tdnet.data.clips import Clip, LabelledFrame, LabelledVideos, read_labels, windows
from tdnet.data.motion import CameraPath
from tdnet.data.palette import IGNORE_LABEL
from tdnet.video.images import read_image

Transform = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Images, uint8 ``[m, 3, H, W]``, and label maps, uint8 ``[n, H, W]``, to float32 and int64."""


class WindowDataset(Dataset[tuple[Tensor, Tensor]]):
    """Labelled frames, each with the frames before it that a network of m paths looks at.

    ``dataset[index, seed]`` gives images, float32 ``[m, 3, H, W]``, and labels, int64: of the last
    frame ``[H, W]``, or of all ``[m, H, W]``, IGNORE_LABEL where nobody labelled. All that is
    random is drawn from the seed, whatever the state of torch's generators, which stays as it was;
    an index alone has the seed 0. It raises ValueError for a label map that is not of 8 bits, or
    images and labels of several sizes, VideoError for an image that cannot be read, and IndexError.
    """

    def __init__(
        self,
        videos: LabelledVideos,
        length: int,
        transform: Transform,
        step: int = 1,
        labels: Literal["last", "all"] = "last",
        motion_share: float = 0.0,
    ):
        """Find the windows; files are read when they are asked for.

        Args:
            videos: a part of a data set.
            length: m, frames of a window, 1 or more.
            transform: what becomes of images and labels: see `tdnet.data.augment`.
            step: from frame to frame of a window, 1 or more.
            labels: of the last frame, or of all.
            motion_share: share of the samples, 0 to 1, that are not the real window but the
                labelled frame alone, moved by a simulated camera (`tdnet.data.motion`). If it is
                not 0, labelled frames that lack frames before them are samples too, always moved.

        Raises:
            ValueError: a number is out of its range, labels is neither, or there is no window.
        """
        if labels not in ("last", "all"):
            raise ValueError(f"labels: expected 'last' or 'all', got {labels!r}")
        if not 0 <= motion_share <= 1:
            raise ValueError(f"motion_share: expected a number from 0 to 1, got {motion_share}")
        self._windows = windows(videos.clips, length, step)
        if motion_share:
            real = {window[-1]: window for window in self._windows}
            stills = windows(videos.clips, 1)
            self._windows = [real.get(still, (still,)) for (still,) in stills]
        if not self._windows:
            raise ValueError(
                f"videos: expected labelled frames with {length - 1} before them, {step} apart, "
                f"got none in {len(videos.clips)} clips"
            )
        self._length = length
        self._transform = transform
        self._all_labels = labels == "all"
        self._motion_share = motion_share
        self._class_of = np.array(videos.class_table(), np.uint8)

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, sample: Sample | int) -> tuple[Tensor, Tensor]:
        index, seed = sample if isinstance(sample, tuple) else (sample, 0)
        window = self._windows[index]
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which would seed the generators of accelerators too.
            torch.default_generator.manual_seed(seed)
            moved = torch.rand(()).item() < self._motion_share or len(window) < self._length
            images, labels = self._moved(window[-1]) if moved else self._real(window)
            images, labels = self._transform(images, labels)
        return images, labels if self._all_labels else labels[-1]

    def _real(self, window: Clip) -> tuple[Tensor, Tensor]:
        images = [_image(frame) for frame in window]
        for frame, image in zip(window, images, strict=True):
            if image.shape != images[-1].shape:
                raise ValueError(
                    f"{frame.image}: expected {_size(images[-1])} as {window[-1].image.name}, "
                    f"got {_size(image)}"
                )
        labelled = window if self._all_labels else window[-1:]
        labels = [self._labels(frame, images[-1].shape[-2:]) for frame in labelled]
        return torch.stack(images), torch.stack(labels)

    def _moved(self, frame: LabelledFrame) -> tuple[Tensor, Tensor]:
        image = _image(frame)
        labels = self._labels(frame, image.shape[-2:])
        path = CameraPath.random(self._length)
        images = path.images(image)
        return images, path.labels(labels) if self._all_labels else labels[None]

    def _labels(self, frame: LabelledFrame, size: torch.Size) -> Tensor:
        """Classes, uint8 ``[H, W]``."""
        if frame.labels is None:
            return torch.full(size, IGNORE_LABEL, dtype=torch.uint8)
        labels = torch.from_numpy(read_labels(frame.labels, self._class_of))
        if labels.shape != size:
            raise ValueError(
                f"{frame.labels}: expected {size[0]}x{size[1]} as its image, got {_size(labels)}"
            )
        return labels


def _image(frame: LabelledFrame) -> Tensor:
    """uint8 ``[3, H, W]``."""
    return torch.from_numpy(read_image(frame.image)).permute(2, 0, 1).contiguous()


def _size(image: Tensor) -> str:
    return f"{image.shape[-2]}x{image.shape[-1]}"
