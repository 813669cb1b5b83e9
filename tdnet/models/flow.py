"""Optical flow between images, and maps that it carries (OFW of Fig. 6).

The flow is OpenCV's DIS (Kroeger et al., ECCV 2016) in place of the paper's FlowNet, on the CPU.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_GRAY = (0.299, 0.587, 0.114)
# Normalised images are mostly within this many standard deviations of their mean.
_RANGE = 2.6


def image_flow(image: Tensor, past_image: Tensor) -> Tensor:
    """Where each pixel of an image is in a past one, by OpenCV's DIS, without gradient.

    Args:
        image: normalised, ``[B, 3, H, W]``.
        past_image: of the same shape.

    Returns:
        ``[B, 2, H, W]``, in pixels to the right and down.

    Raises:
        ModuleNotFoundError: if OpenCV is not installed; the text says how to.
    """
    dis = _opencv().DISOpticalFlow_create(_opencv().DISOPTICAL_FLOW_PRESET_MEDIUM)
    flows = [
        dis.calc(gray, past_gray, None)
        for gray, past_gray in zip(_gray(image), _gray(past_image), strict=True)
    ]
    return torch.from_numpy(np.stack(flows)).permute(0, 3, 1, 2).to(image)


def warp(x: Tensor, flow: Tensor) -> Tensor:
    """Carry a map along: what is at p in the result was at p + flow(p).

    Bilinear; beyond the border it is as at the border.

    Args:
        x: ``[B, C, h, w]``.
        flow: ``[B, 2, H, W]`` in pixels of its own size; corners of flow and map agree.

    Returns:
        ``[B, C, h, w]``.
    """
    height, width = flow.shape[-2:]
    flow = F.interpolate(flow, x.shape[-2:], mode="bilinear", align_corners=True)
    rows, columns = (torch.linspace(-1, 1, length).to(x) for length in x.shape[-2:])
    right = columns + flow[:, 0] * (2 / max(width - 1, 1))
    down = rows[:, None] + flow[:, 1] * (2 / max(height - 1, 1))
    grid = torch.stack((right, down), dim=-1)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=True)


def _gray(image: Tensor) -> list[Any]:
    """uint8 images ``[H, W]`` of a batch."""
    weights = torch.tensor(_GRAY).view(3, 1, 1)
    gray = (image.detach().float().cpu() * weights).sum(1)
    return list(((gray / _RANGE + 1) * 127.5).round().clamp(0, 255).byte().numpy())


def _opencv() -> Any:
    try:
        import cv2
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the aggregation by flow needs OpenCV: pip install opencv-python-headless"
        ) from error
    return cv2
