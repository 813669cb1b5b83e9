"""Optical flow: of every pixel of a frame, where its point was in the frame before."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tdnet.extras import extra_package

# KITTI's files have 16 bits a number: 64 steps a pixel, around the middle.
_STEPS, _MIDDLE = 64.0, 2**15


class Flow(NamedTuple):
    """Flow of one frame.

    Attributes:
        pixels: float32 [2, H, W], how far to the right, and down, a pixel's point was in the frame
            before, in pixels: the frame before, read there, is this one.
        valid: bool [H, W], where the point was seen in the frame before.
    """

    pixels: NDArray[np.float32]
    valid: NDArray[np.bool_]


def write_flow(path: Path, flow: Flow) -> None:
    """Write KITTI's 16-bit PNG: flow to a 64th of a pixel; from 512 pixels on it is not valid.

    Raises:
        ValueError: pixels is not [2, H, W], or valid not [H, W].
        ImportError: OpenCV is not installed.
        OSError: the file cannot be written.
    """
    if flow.pixels.shape != (2, *flow.valid.shape):
        raise ValueError(
            f"flow: expected pixels [2, H, W] and valid [H, W], "
            f"got {list(flow.pixels.shape)} and {list(flow.valid.shape)}"
        )
    steps = np.rint(_STEPS * flow.pixels.astype(np.float64)) + _MIDDLE
    valid = flow.valid & (np.abs(steps - _MIDDLE) < _MIDDLE).all(0)
    right, down = np.where(valid, steps, 0).astype(np.uint16)
    encoded, data = extra_package("cv2", "a file of optical flow").imencode(
        ".png", np.dstack([valid.astype(np.uint16), down, right])
    )
    if not encoded:
        raise OSError(f"{path}: expected OpenCV to encode the flow, got no data")
    path.write_bytes(data.tobytes())


def read_flow(path: Path) -> Flow:
    """Read KITTI's 16-bit PNG; pixels are 0 where it is not valid.

    Raises:
        ValueError: the file is no PNG of three 16-bit channels.
        ImportError: OpenCV is not installed.
        OSError: the file cannot be read.
    """
    cv2 = extra_package("cv2", "a file of optical flow")
    image = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None or image.dtype != np.uint16 or image.ndim != 3 or image.shape[2] != 3:
        got = "no image" if image is None else f"{image.dtype} {list(image.shape)}"
        raise ValueError(f"{path}: expected a PNG of uint16 [H, W, 3], got {got}")
    valid = image[..., 0] > 0
    steps = image[..., :0:-1].transpose(2, 0, 1).astype(np.float32) - _MIDDLE
    return Flow(np.where(valid, steps / np.float32(_STEPS), np.float32(0)), valid)
