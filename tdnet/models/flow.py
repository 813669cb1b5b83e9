"""Maps that optical flow carries from frame to frame (OFW of Fig. 6).

The flow is OpenCV's DIS in place of the paper's FlowNet, on the CPU.
"""

import numpy as np
import torch
from torch import Tensor

from tdnet.data.dis import dis_flow
from tdnet.data.warp import warp
from tdnet.models.layers import resize
from tdnet.preprocessing import pixels_of


def image_flow(image: Tensor, past_image: Tensor) -> Tensor:
    """Where each pixel of an image is in a past one, without gradient.

    Args:
        image: normalised, ``[B, 3, H, W]``.
        past_image: of the same shape.

    Returns:
        ``[B, 2, H, W]``, in pixels to the right and down.

    Raises:
        ImportError: OpenCV is not installed.
    """
    pairs = torch.stack((image.detach(), past_image.detach()), dim=1)
    flows = []
    for pair in pairs:
        pixels = pixels_of(pair).round().clamp(0, 255).to("cpu", torch.uint8)
        flows.append(dis_flow(*np.ascontiguousarray(pixels.permute(0, 2, 3, 1).numpy())))
    return torch.from_numpy(np.stack(flows)).permute(0, 3, 1, 2).to(image)


def carried(value: Tensor, flow: Tensor) -> Tensor:
    """A past map where the flow of images says that its points are now; 0 where none were.

    Args:
        value: ``[B, C, h, w]``; its corner pixels are those of the images.
        flow: of the images, ``[B, 2, H, W]``.

    Returns:
        ``[B, C, h, w]``.
    """
    height, width = value.shape[-2:]
    rows, columns = flow.shape[-2:]
    scale = flow.new_tensor([(width - 1) / max(columns - 1, 1), (height - 1) / max(rows - 1, 1)])
    return warp(value, resize(flow, (height, width)) * scale.view(2, 1, 1))
