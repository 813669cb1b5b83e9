"""What becomes of the images and labels of a window on their way into a network.

Transforms take images, uint8 ``[m, 3, H, W]``, and label maps, uint8 ``[n, H, W]``, of one window,
and give float32 images, normalised as `tdnet.preprocessing` does it, and int64 labels. Whatever is
random is the same for all frames of the window, and drawn from torch's global generator.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tdnet.architectures import Size
from tdnet.data.palette import IGNORE_LABEL
from tdnet.data.window_dataset import Transform
from tdnet.extras import extra_package
from tdnet.preprocessing import MEAN, images_of


def training_transform(
    crop: Size,
    scale: tuple[float, float] = (0.5, 2.0),
    flip: float = 0.5,
    jitter: float = 0.0,
) -> Transform:
    """Random scaling, cropping, flipping and colours.

    Args:
        crop: (height, width) of the results. Images that are smaller once scaled are padded: with
            ImageNet's mean colour, labels with IGNORE_LABEL.
        scale: least and greatest; a number between them, evenly, is what images are enlarged by.
        flip: how often left and right are swapped, 0 to 1.
        jitter: by which share brightness, contrast and saturation may change, 0 to 1.

    Raises:
        ValueError: an argument is out of its range; the text names it.
        ImportError: torchvision is not installed.
    """
    if min(crop) < 1:
        raise ValueError(f"crop: expected two positive integers, got {crop}")
    if not 0 < scale[0] <= scale[1] < math.inf:
        raise ValueError(f"scale: expected two positive numbers, the lesser first, got {scale}")
    for name, value in (("flip", flip), ("jitter", jitter)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name}: expected a number from 0 to 1, got {value}")
    return _TrainingTransform(crop, scale, flip, jitter)


def evaluation_transform(size: Size | None = None) -> Transform:
    """Images of the size that a network is to see; labels stay as they are.

    Networks are measured at the size of the labels: resize what they say, not the labels.

    Args:
        size: (height, width) of the images. None: as they come.
    """
    return _EvaluationTransform(size)


class _TrainingTransform:
    """Classes, not functions in functions, since workers that are spawned get them pickled."""

    def __init__(self, crop: Size, scale: tuple[float, float], flip: float, jitter: float):
        v2 = extra_package("torchvision.transforms.v2", "augmentation")
        self._crop = crop
        self._scale = scale
        self._resize = v2.Resize(list(crop))
        self._change = v2.Compose(
            [
                v2.RandomHorizontalFlip(flip),
                v2.ColorJitter(brightness=jitter, contrast=jitter, saturation=jitter),
            ]
        )

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        tv_tensors = extra_package("torchvision.tv_tensors", "augmentation")
        video, mask = tv_tensors.Video(images), tv_tensors.Mask(labels)
        # Cropped before it is scaled: what is not kept need not be resized.
        scale = torch.empty(()).uniform_(*self._scale).item()
        video, mask = self._random_crop(scale)(video, mask)
        video, mask = self._change(self._resize(video), self._resized_labels(mask))
        return _finished(video.as_subclass(Tensor), mask.as_subclass(Tensor))

    def _resized_labels(self, mask: Tensor) -> Tensor:
        """Not torchvision's "nearest", which is up to half a pixel beside the bilinear images."""
        labels = mask.as_subclass(Tensor)[None]
        resized = F.interpolate(labels, self._crop, mode="nearest-exact")[0]
        mask = extra_package("torchvision.tv_tensors", "augmentation").Mask(resized)
        return mask

    def _random_crop(self, scale: float) -> Transform:
        """A crop of the source that is `crop` once it is scaled."""
        v2, tv_tensors = (
            extra_package(f"torchvision.{name}", "augmentation")
            for name in ("transforms.v2", "tv_tensors")
        )
        crop: Transform = v2.RandomCrop(
            [max(1, round(side / scale)) for side in self._crop],
            pad_if_needed=True,
            fill={
                tv_tensors.Video: [round(255 * channel) for channel in MEAN],
                tv_tensors.Mask: IGNORE_LABEL,
            },
        )
        return crop


class _EvaluationTransform:
    def __init__(self, size: Size | None):
        self._size = size

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return _finished(images, labels, self._size)


def _finished(images: Tensor, labels: Tensor, size: Size | None = None) -> tuple[Tensor, Tensor]:
    return images_of(images.permute(0, 2, 3, 1), size), labels.long()
