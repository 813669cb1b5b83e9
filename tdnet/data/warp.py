"""Frames read at other places than their pixels."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def warp(images: Tensor, flow: Tensor) -> Tensor:
    """The frames before, moved to where their points are now; zeros where they do not reach.

    Args:
        images: the frames before, floating point, ``[B, C, H, W]``.
        flow: of the frames now, ``[B, 2, H, W]``: pixels to the right and down, as `Flow.pixels`.

    Returns:
        ``[B, C, H, W]``, bilinear.
    """
    return read_at(images, pixel_places(*flow.shape[-2:]).to(flow) + flow)


def read_at(
    images: Tensor,
    places: Tensor,
    mode: Literal["bilinear", "nearest"] = "bilinear",
    outside: Literal["zeros", "reflection"] = "zeros",
) -> Tensor:
    """Images at places given in pixels.

    Args:
        images: floating point, ``[B, C, H, W]``.
        places: ``[B, 2, h, w]``: columns and rows; 0 is the middle of the first pixel.
        mode: of the interpolation.
        outside: what stands there.

    Returns:
        ``[B, C, h, w]``.
    """
    sides = places.new_tensor((images.shape[-1], images.shape[-2])).view(2, 1, 1)
    grid = ((2 * places + 1) / sides - 1).permute(0, 2, 3, 1).to(images.dtype)
    return F.grid_sample(images, grid, mode, outside, align_corners=False)


def pixel_places(height: int, width: int) -> Tensor:
    """Column and row of every pixel, float64 ``[2, H, W]``."""
    rows = torch.arange(height, dtype=torch.float64).view(-1, 1).expand(height, width)
    columns = torch.arange(width, dtype=torch.float64).expand(height, width)
    return torch.stack([columns, rows])
