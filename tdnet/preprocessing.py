"""From pixels to what enters a network: the same for streaming, training and evaluation."""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from tdnet.architectures import Size

# ImageNet statistics of RGB values in 0 to 1.
MEAN = (0.485, 0.456, 0.406)
STANDARD_DEVIATION = (0.229, 0.224, 0.225)


def images_of(pixels: Tensor, size: Size | None = None) -> Tensor:
    """RGB pixels to normalised images.

    They are resized (bilinear, half-pixel centres, no antialiasing), divided by 255 and normalised
    with ImageNet's mean and standard deviation.

    Args:
        pixels: 0 to 255, ``[B, H, W, 3]``, any dtype and device.
        size: (height, width) of the images. None: that of the pixels.

    Returns:
        float32, ``[B, 3, h, w]``.
    """
    images = pixels.permute(0, 3, 1, 2).float()
    if size is not None and images.shape[-2:] != size:
        images = F.interpolate(images, size, mode="bilinear", align_corners=False)
    mean, deviation = _statistics(images.device)
    return (images / 255 - mean) / deviation


def pixels_of(images: Tensor) -> Tensor:
    """Normalised images ``[B, 3, H, W]`` to the RGB values that they were, 0 to 255, float32."""
    mean, deviation = _statistics(images.device)
    return (images.float() * deviation + mean) * 255


@lru_cache
def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, ``[3, 1, 1]``; made once a device, since that waits for it."""
    with torch.inference_mode(False):  # so that gradients of images may use them
        mean, deviation = (
            torch.tensor(values, device=device).view(3, 1, 1)
            for values in (MEAN, STANDARD_DEVIATION)
        )
    return mean, deviation
