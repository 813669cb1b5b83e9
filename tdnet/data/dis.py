"""Optical flow from a frame to the next one, by OpenCV's DIS."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tdnet.extras import extra_package

ForwardFlow = NDArray[np.float32]
"""[H, W, 2]: how many pixels right and down a pixel of a frame has moved in the next one."""

Frame = NDArray[np.uint8]

# OpenCV 5 reads outside of frames with a shorter side.
_SHORTEST_SIDE = 32


def dis_flow(frame: Frame, next_frame: Frame) -> ForwardFlow:
    """Optical flow by Dense Inverse Search (Kroeger et al., ECCV 2016), OpenCV's "medium".

    Args:
        frame: uint8 `[H, W, 3]`, RGB.
        next_frame: another of the same size.

    Returns:
        float32 `[H, W, 2]`, in pixels: where a pixel of frame is in next_frame, right and down.

    Raises:
        ValueError: the sizes differ.
        ImportError: OpenCV is not installed.
    """
    (height, width), (next_height, next_width) = frame.shape[:2], next_frame.shape[:2]
    if (height, width) != (next_height, next_width):
        raise ValueError(
            f"next_frame: expected {height}x{width} as frame, got {next_height}x{next_width}"
        )
    cv2 = load_opencv()
    gray, next_gray = (
        _enlarged(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)) for image in (frame, next_frame)
    )
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    flow: ForwardFlow = dis.calc(gray, next_gray, None)
    return flow[:height, :width]


def load_opencv() -> Any:
    """The package cv2; raises ImportError with what to install."""
    return extra_package("cv2", "optical flow")


def _enlarged(gray: Frame) -> Frame:
    """The image with its last row and column repeated until no side is too short."""
    missing = [(0, max(_SHORTEST_SIDE - side, 0)) for side in gray.shape]
    return np.pad(gray, missing, mode="edge")
