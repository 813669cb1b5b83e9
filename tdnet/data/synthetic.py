"""A synthetic street, seen from a moving car, with exact labels.

The street is made block by block from the seed, so that a clip may be of any length, and the same
seed, size and frame number always give the same picture.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tdnet.data.flow import Flow
from tdnet.data.raycast import HAZE_COLOR, NEAR, SKY, Camera, Canvas, Floats, Mask
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
    _check_clip(num_frames, size, seed)
    return (street_frame(index, size, seed) for index in range(num_frames))


def street_clip_with_flow(
    num_frames: int = 24, size: tuple[int, int] = (256, 512), seed: int = 0
) -> Iterator[tuple[SyntheticFrame, Flow | None]]:
    """The frames of `street_clip`, and of each but the first its exact flow to the one before.

    The flow is that of what the labels are of: of the same ray a pixel. It is valid where that
    point was seen in the frame before and had the same label. People and bicycles move as a whole,
    whatever their limbs do; shadows move with the ground that they lie on.

    Args, Raises: as `street_clip`.
    """
    _check_clip(num_frames, size, seed)
    return _with_flow(num_frames, size, seed)


def _with_flow(
    num_frames: int, size: tuple[int, int], seed: int
) -> Iterator[tuple[SyntheticFrame, Flow | None]]:
    previous = None
    for index in range(num_frames):
        canvas = _draw(index, size, seed)
        flow = None if previous is None else _flow(canvas, previous)
        yield _develop(canvas, np.random.default_rng((seed, 2, index))), flow
        previous = canvas


def _check_clip(num_frames: int, size: tuple[int, int], seed: int) -> None:
    if num_frames < 0:
        raise ValueError(f"num_frames: expected 0 or more, got {num_frames}")
    _check_frame(0, size, seed)


def _check_frame(index: int, size: tuple[int, int], seed: int) -> None:
    height, width = size
    if height < 32 or width < 32:
        raise ValueError(f"size: expected at least 32x32, got {height}x{width}")
    if index < 0 or seed < 0:
        raise ValueError(f"index, seed: expected 0 or more, got {index}, {seed}")


def street_frame(index: int, size: tuple[int, int] = (256, 512), seed: int = 0) -> SyntheticFrame:
    """One frame of the clip that `street_clip` makes of the same size and seed.

    Args:
        index: which frame, from 0.
        size: height and width, at least 32 each.
        seed: which street, from 0.

    Raises:
        ValueError: index or seed is negative, or the size is too small.
    """
    return _develop(_draw(index, size, seed), np.random.default_rng((seed, 2, index)))


def _draw(index: int, size: tuple[int, int], seed: int) -> Canvas:
    _check_frame(index, size, seed)
    height, width = size
    time = index / FRAME_RATE
    camera = Camera.driving(time, _SUPERSAMPLING * height, _SUPERSAMPLING * width)
    canvas = Canvas(camera, np.random.default_rng((seed, 1)))
    canvas.draw_sky_and_ground()
    draw_street(canvas, time, seed)
    return canvas


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


def _flow(canvas: Canvas, previous: Canvas) -> Flow:
    """Where the points seen at the labels' rays were a frame ago."""
    camera, at_labels = canvas.camera, (slice(None, None, _SUPERSAMPLING),) * 2
    rays = np.stack([ray[at_labels].ravel() for ray in (canvas.ray_x, canvas.ray_y, canvas.ray_z)])
    depth = canvas.depth[at_labels].ravel().astype(np.float64)
    points = np.array((camera.x, camera.y, camera.z)) + (depth * rays).T
    points[:, 2] -= canvas.speed[at_labels].ravel() / FRAME_RATE
    columns, rows, depth_then = previous.camera.project(points)
    here_rows, here_columns = (
        side[at_labels].ravel() + 0.5 for side in np.indices(canvas.labels.shape)
    )
    shape = canvas.labels[at_labels].shape
    flow = np.stack([columns - here_columns, rows - here_rows]) / _SUPERSAMPLING
    seen = _seen(previous, columns, rows, depth_then)
    seen &= canvas.labels[at_labels].ravel() == _nearest_labels(previous, columns, rows)
    return Flow(flow.astype(np.float32).reshape(2, *shape), seen.reshape(shape))


def _seen(canvas: Canvas, columns: Floats, rows: Floats, depth: Floats) -> Mask:
    """Which points are in the picture and not hidden: as deep as the four rays around them meet."""
    height, width = canvas.labels.shape
    left = np.clip(np.floor(columns - 0.5), 0, width - 2).astype(np.int64)
    top = np.clip(np.floor(rows - 0.5), 0, height - 2).astype(np.int64)
    around = [canvas.depth[top + down, left + right] for down in (0, 1) for right in (0, 1)]
    inside = (columns >= 0) & (columns <= width) & (rows >= 0) & (rows <= height) & (depth > NEAR)
    return inside & (0.99 * np.min(around, 0) < depth) & (depth < 1.01 * np.max(around, 0))


def _nearest_labels(canvas: Canvas, columns: Floats, rows: Floats) -> NDArray[np.uint8]:
    """Of the label map, at places of the canvas that may lie outside."""
    labels = canvas.labels[::_SUPERSAMPLING, ::_SUPERSAMPLING]
    height, width = labels.shape
    column = np.clip(np.rint((columns - 0.5) / _SUPERSAMPLING), 0, width - 1).astype(np.int64)
    row = np.clip(np.rint((rows - 0.5) / _SUPERSAMPLING), 0, height - 1).astype(np.int64)
    return labels[row, column]
