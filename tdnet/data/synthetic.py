"""A synthetic street, seen from a moving car, with exact labels.

The street is made block by block from the seed, so that a clip may be of any length, and the same
seed, size and frame number always give the same picture.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tdnet.data.raycast import HAZE_COLOR, SKY, Camera, Canvas
from tdnet.data.street import draw_street

FRAME_RATE = 12  # frames a second: what moves has real speeds at this rate

_SUPERSAMPLING = 2
_HAZE_DISTANCE = 170.0


@dataclass(frozen=True)
class SyntheticFrame:
    """One picture of a clip.

    Attributes:
        image: uint8 [H, W, 3], RGB.
        labels: uint8 [H, W], Cityscapes train ids 0 to 18: what the ray through a point a quarter
            pixel off the middle meets (an image pixel is the mean of four such rays).
    """

    image: NDArray[np.uint8]
    labels: NDArray[np.uint8]


def street_clip(
    num_frames: int = 24, size: tuple[int, int] = (256, 512), seed: int = 0
) -> Iterator[SyntheticFrame]:
    """Successive frames of a drive along a street.

    Args:
        num_frames: length of the clip.
        size: height and width of the frames, at least 32 each.
        seed: which street.

    Raises:
        ValueError: as `street_frame`; num_frames is negative.
    """
    if num_frames < 0:
        raise ValueError(f"num_frames: expected 0 or more, got {num_frames}")
    return (street_frame(index, size, seed) for index in range(num_frames))


def street_frame(index: int, size: tuple[int, int] = (256, 512), seed: int = 0) -> SyntheticFrame:
    """One frame of the clip that `street_clip` makes of the same size and seed.

    Args:
        index: which frame, from 0.
        size: height and width, at least 32 each.
        seed: which street, from 0.

    Raises:
        ValueError: index or seed is negative, or the size is too small.
    """
    height, width = size
    if height < 32 or width < 32:
        raise ValueError(f"size: expected at least 32x32, got {height}x{width}")
    if index < 0 or seed < 0:
        raise ValueError(f"index, seed: expected 0 or more, got {index}, {seed}")
    time = index / FRAME_RATE
    camera = Camera.driving(time, _SUPERSAMPLING * height, _SUPERSAMPLING * width)
    canvas = Canvas(camera, np.random.default_rng((seed, 1)))
    canvas.draw_sky_and_ground()
    draw_street(canvas, time, seed)
    return _develop(canvas, np.random.default_rng((seed, 2, index)))


def _develop(canvas: Canvas, random: np.random.Generator) -> SyntheticFrame:
    """Haze, averaging to the final size, lens shading and sensor noise."""
    depth = np.minimum(canvas.depth, 4 * _HAZE_DISTANCE)
    haze = 1 - np.exp(-depth / _HAZE_DISTANCE)[..., None]
    haze[canvas.labels == SKY] = 0
    color = canvas.color + haze * (HAZE_COLOR - canvas.color)
    height, width = (side // _SUPERSAMPLING for side in canvas.labels.shape)
    color = color.reshape(height, _SUPERSAMPLING, width, _SUPERSAMPLING, 3).mean(axis=(1, 3))
    rows = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    columns = np.linspace(-1, 1, width, dtype=np.float32)[None]
    color *= (1.04 - 0.10 * (rows**2 + columns**2))[..., None]
    color += random.normal(0, 0.012, color.shape).astype(np.float32)
    image = np.round(255 * np.clip(color, 0, 1)).astype(np.uint8)
    return SyntheticFrame(image, canvas.labels[::_SUPERSAMPLING, ::_SUPERSAMPLING].copy())
