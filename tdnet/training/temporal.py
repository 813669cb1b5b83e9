"""Consistency of two frames: what was seen before, moved along the optical flow, is seen again.

The temporal loss of ETC (Liu et al., ECCV 2020), Eq. 2: the squared difference of the class
probabilities, pixels weighed by how well the flow explains their colour.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tdnet.data.warp import warp
from tdnet.models.flow import image_flow
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
    flow = image_flow(current, previous).float()
    before, now = pixels_of(previous) / 255, pixels_of(current) / 255
    moved = warp(torch.cat((before, torch.ones_like(before[:, :1])), dim=1), flow)
    error = (now - moved[:, :3]).abs().sum(1)
    return flow, torch.exp(-error) * (moved[:, 3] > 0.99)
