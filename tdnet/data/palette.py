"""Names and colours of the 19 Cityscapes classes, and fast colouring of label maps."""

import colorsys

import numpy as np
from numpy.typing import NDArray

IGNORE_LABEL = 255

CLASS_NAMES: tuple[str, ...] = (
    "road",
    "sidewalk",
    "building",
    "wall",
    "fence",
    "pole",
    "traffic light",
    "traffic sign",
    "vegetation",
    "terrain",
    "sky",
    "person",
    "rider",
    "car",
    "truck",
    "bus",
    "train",
    "motorcycle",
    "bicycle",
)

# RGB, one row a train id, as the Cityscapes benchmark draws them.
CLASS_COLORS: NDArray[np.uint8] = np.array(
    [
        (128, 64, 128),
        (244, 35, 232),
        (70, 70, 70),
        (102, 102, 156),
        (190, 153, 153),
        (153, 153, 153),
        (250, 170, 30),
        (220, 220, 0),
        (107, 142, 35),
        (152, 251, 152),
        (70, 130, 180),
        (220, 20, 60),
        (255, 0, 0),
        (0, 0, 142),
        (0, 0, 70),
        (0, 60, 100),
        (0, 80, 100),
        (0, 0, 230),
        (119, 11, 32),
    ],
    dtype=np.uint8,
)

_GOLDEN_RATIO = 0.618033988749895


def _label_table() -> NDArray[np.uint8]:
    """Colours of all 256 label values: Cityscapes, then spread hues, black for 255."""
    table = np.zeros((256, 3), dtype=np.uint8)
    table[: len(CLASS_COLORS)] = CLASS_COLORS
    for label in range(len(CLASS_COLORS), IGNORE_LABEL):
        red, green, blue = colorsys.hsv_to_rgb((label * _GOLDEN_RATIO) % 1.0, 0.75, 0.9)
        table[label] = (round(255 * red), round(255 * green), round(255 * blue))
    return table


_LABEL_TABLE = _label_table()


def _check_labels(labels: NDArray[np.uint8]) -> None:
    if labels.ndim != 2 or labels.dtype != np.uint8:
        raise ValueError(
            f"labels: expected a uint8 array [H, W], got {labels.dtype} {list(labels.shape)}"
        )


def colorize(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Colour a label map.

    Args:
        labels: uint8 [H, W]; 0 to 18 get the Cityscapes colours, 19 to 254 fixed distinct
            ones, 255 (ignore) black.

    Returns:
        uint8 [H, W, 3], RGB.

    Raises:
        ValueError: labels is not a uint8 [H, W] array.
    """
    _check_labels(labels)
    return np.take(_LABEL_TABLE, labels, axis=0)


def overlay(
    frame: NDArray[np.uint8], labels: NDArray[np.uint8], alpha: float = 0.5
) -> NDArray[np.uint8]:
    """Blend a frame with the colours of its label map.

    Args:
        frame: uint8 [H, W, 3], RGB.
        labels: uint8 [H, W].
        alpha: weight of the label colours, 0 (frame only) to 1 (colours only).

    Returns:
        uint8 [H, W, 3], RGB: (1 - alpha) * frame + alpha * colorize(labels), rounded.

    Raises:
        ValueError: a shape or dtype is wrong, the sizes differ, or alpha is outside [0, 1].
    """
    _check_labels(labels)
    if frame.dtype != np.uint8 or frame.shape != (*labels.shape, 3):
        raise ValueError(
            f"frame: expected uint8 {[*labels.shape, 3]} as labels, "
            f"got {frame.dtype} {list(frame.shape)}"
        )
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha: expected a number from 0 to 1, got {alpha}")
    # Fixed point with 8 fractional bits: the largest sum is 256 * 255 + 128 < 2**16.
    weight = round(256 * alpha)
    weighted_colors = _LABEL_TABLE.astype(np.uint16) * np.uint16(weight) + np.uint16(128)
    blended = frame.astype(np.uint16)
    blended *= np.uint16(256 - weight)
    blended += np.take(weighted_colors, labels, axis=0)
    blended >>= np.uint16(8)
    return blended.astype(np.uint8)
