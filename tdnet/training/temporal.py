"""Consistency of two frames: what was seen before, moved along the optical flow, is seen again.

The temporal loss of ETC (Liu et al., ECCV 2020), Eq. 2: the squared difference of the class
probabilities, pixels weighed by how well the flow explains their colour.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tdnet.data.dis import dis_flow
from tdnet.data.warp import warp
from tdnet.models.layers import resize
from tdnet.preprocessing import pixels_of
from tdnet_ops.gradients import wide


def temporal_loss(previous: Tensor, current: Tensor, flow: Tensor, weights: Tensor) -> Tensor:
    """The mean over pixels of weights times the squared difference of the probabilities.

    Args:
        previous, current: logits of the frames before and now, ``[B, K, h, w]``, resized to the
            flow's size (bilinear, align_corners=True).
        flow: of the frame now, ``[B, 2, H, W]``: where its pixels were before, see
            `tdnet.data.warp.warp`.
        weights: 0 to 1, ``[B, H, W]``.

    Raises:
        ValueError: logits of two shapes, or weights of another size than the flow.
    """
    if previous.shape != current.shape:
        raise ValueError(
            f"previous: expected {list(current.shape)} as current, got {list(previous.shape)}"
        )
    if weights.shape != (flow.shape[0], *flow.shape[2:]):
        raise ValueError(
            f"weights: expected {[flow.shape[0], *flow.shape[2:]]} as the flow, "
            f"got {list(weights.shape)}"
        )
    height, width = flow.shape[-2:]
    before, now = (
        F.softmax(resize(wide(logits), (height, width)), dim=1) for logits in (previous, current)
    )
    difference = (now - warp(before, flow)).square().sum(1)
    return (weights * difference).mean()


@torch.no_grad()
def estimated_flow(previous: Tensor, current: Tensor) -> tuple[Tensor, Tensor]:
    """Flow by DIS of normalised images, and how well it explains the colours.

    Args:
        previous, current: ``[B, 3, H, W]``.

    Returns:
        Flow as `temporal_loss` takes it, and weights exp(-|current - moved previous|_1), where the
        previous image reaches, of colours 0 to 1; float32.
    """
    before, now = pixels_of(previous), pixels_of(current)
    flows = [
        dis_flow(second, first)
        for first, second in zip(_as_arrays(before), _as_arrays(now), strict=True)
    ]
    flow = torch.from_numpy(np.stack(flows)).permute(0, 3, 1, 2).to(previous.device)
    colours = torch.cat((before / 255, torch.ones_like(before[:, :1])), dim=1)
    moved = warp(colours, flow)
    error = (now / 255 - moved[:, :3]).abs().sum(1)
    return flow, torch.exp(-error) * (moved[:, 3] > 0.99)


def _as_arrays(pixels: Tensor) -> NDArray[np.uint8]:
    """uint8 ``[B, H, W, 3]``."""
    array: NDArray[np.uint8] = pixels.round().to("cpu", torch.uint8).permute(0, 2, 3, 1).numpy()
    return array
