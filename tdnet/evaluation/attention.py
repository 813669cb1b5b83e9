"""Where a TDNet looked: the soft weights of a pixel over the frames that it remembers (Fig. 5b).

Eq. 5 gives a pixel of frame t the values v'_{t-1} by the rows of a matrix of weights; Eq. 4 made
those of v_{t-1} and, by another such matrix, v'_{t-2}; and so on. The weights over frame t-i are
thus the pixel's row of the product of the first i matrices. Each sums to one. In Eq. 2 ("sta") the
pixel attends to every frame itself.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tdnet.architectures import Size
from tdnet.extras import extra_package
from tdnet.models.encoding import StoredFrame
from tdnet.models.tdnet import TDNet
from tdnet.preprocessing import images_of
from tdnet_ops import pooled_affinity

Frame = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Look:
    """The last frame of a video, and what the model remembered when it came.

    Attributes:
        frames: uint8 `[H, W, 3]`, RGB: those of the window and the last one, oldest first.
        query: Q_t, `[1, 64, h, w]`.
        window: stored frames, oldest first.
        stride: n of their pooling.
        is_chain: whether frames are attended to through those after them (Eq. 4).
    """

    frames: tuple[Frame, ...]
    query: Tensor
    window: tuple[StoredFrame, ...]
    stride: int
    is_chain: bool


@torch.inference_mode()
def look(model: TDNet, frames: Sequence[Frame], path: int, size: Size | None = None) -> Look:
    """Let a model see a window of m frames.

    Args:
        model: in eval mode.
        frames: m of them, uint8 `[H, W, 3]`, RGB, oldest first.
        path: of the first one, 0 to m-1.
        size: (height, width) that frames are resized to before they enter the network.

    Raises:
        ValueError: there are not m frames, no such path, or the model attends to no past frame.
    """
    config = model.config
    if config.aggregation not in ("apm", "sta"):
        raise ValueError(f"model: expected aggregation apm or sta, got {config.aggregation}")
    if model.surviving_paths < 2:
        raise ValueError(f"model: expected 2 surviving paths or more, got {model.surviving_paths}")
    if len(frames) != model.num_paths:
        raise ValueError(f"frames: expected {model.num_paths} as paths, got {len(frames)}")
    device = next(model.parameters()).device
    stream = model.start(path)
    for frame in frames:
        stream = before = model.prepare(stream)
        image = images_of(torch.tensor(frame, device=device)[None], size)
        _, stream = model.label(image, before)
    assert stream.latest is not None
    seen = tuple(frames[-model.surviving_paths :])
    is_chain = config.aggregation == "apm"
    return Look(seen, stream.latest.query, before.window, config.pooling_stride, is_chain)


@torch.inference_mode()
def weights_over_window(look: Look, pixel: tuple[int, int]) -> list[Floats]:
    """How much of each remembered frame went into a pixel of the last one.

    Args:
        look: from `look`.
        pixel: row and column in the frame.

    Returns:
        float32 `[h, w]` of each stored frame, oldest first; each sums to one.

    Raises:
        ValueError: the pixel lies outside of the frame.
    """
    _check_pixel(look, pixel)
    # As the page rounds: up from the middle between two features.
    row, column = (
        math.floor(place * scale + 0.5)
        for place, scale in zip(pixel, _feature_scales(look), strict=True)
    )
    query = look.query[..., row : row + 1, column : column + 1]
    found: list[Floats] = []
    share: Tensor | None = None
    for stored in reversed(look.window):
        matrix = pooled_affinity(query.float(), stored.key.float()).softmax(-1)[0]
        share = share @ matrix if look.is_chain and share is not None else matrix
        found.insert(0, share.reshape(stored.key.shape[-2:]).cpu().numpy())
        query = stored.query if look.is_chain else query
    return found


def _check_pixel(look: Look, pixel: tuple[int, int]) -> None:
    height, width = look.frames[-1].shape[:2]
    if not (0 <= pixel[0] < height and 0 <= pixel[1] < width):
        raise ValueError(
            f"pixel: expected a row below {height} and a column below {width}, got {pixel}"
        )


def _feature_scales(look: Look) -> tuple[float, float]:
    """Features a pixel, downwards and to the right: their corners are those of the frame."""
    height, width = look.frames[-1].shape[:2]
    rows, columns = look.query.shape[-2:]
    return (rows - 1) / max(height - 1, 1), (columns - 1) / max(width - 1, 1)


def write_picture(path: Path, look: Look, pixel: tuple[int, int], name: str = "t") -> None:
    """The frames side by side: the pixel a green cross, its weights heat maps over the others.

    Args:
        path: of a PNG, or what else matplotlib writes.
        look: from `look`.
        pixel: row and column.
        name: of the last frame.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: the pixel lies outside of the frame.
        OSError: the file cannot be written.
    """
    maps = weights_over_window(look, pixel)
    extra_package("matplotlib", "a picture").use("Agg")
    pyplot = extra_package("matplotlib.pyplot", "a picture")
    height, width = look.frames[-1].shape[:2]
    count = len(look.frames)
    figure, axes = pyplot.subplots(
        1, count, figsize=(4 * count, 4 * height / width + 0.4), layout="constrained"
    )
    for age, (panel, frame) in enumerate(zip(reversed(axes), reversed(look.frames), strict=True)):
        panel.imshow(frame)
        panel.set_title(f"{name}-{age}" if age else name)
        panel.set_axis_off()
        if age:
            _draw_heat(panel, maps[-age], look)
    axes[-1].plot(pixel[1], pixel[0], "+", color="lime", markersize=16, markeredgewidth=3)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def write_page(path: Path, look: Look, pixel: tuple[int, int], name: str = "t") -> None:
    """The same as one HTML file that needs no other: who points at a pixel sees its weights.

    It holds the frames as JPEG, and queries and keys, from which the page computes the weights.

    Args:
        path: of the file.
        look: from `look`.
        pixel: row and column that are shown first.
        name: of the last frame.

    Raises:
        ValueError: the pixel lies outside of the frame.
        OSError: the file cannot be written.
    """
    _check_pixel(look, pixel)
    told = {
        "name": name,
        "pixel": pixel,
        "size": look.frames[-1].shape[:2],
        "features": tuple(look.query.shape[-2:]),
        "stored": tuple(look.window[0].key.shape[-2:]),
        "stride": look.stride,
        "channels": look.query.shape[1],
        "isChain": look.is_chain,
        "frames": [_jpeg(frame) for frame in look.frames],
        "query": _rows(look.query),
        "window": [{"query": _rows(f.query), "key": _rows(f.key)} for f in look.window],
    }
    # What begins with it could end the script element, or have its end ignored.
    text = json.dumps(told).replace("<", "\\u003c")
    page = Path(__file__).with_name("attention_page.html").read_text(encoding="utf-8")
    path.write_text(page.replace("@DATA@", text), encoding="utf-8")


def _rows(features: Tensor) -> str:
    """A map `[1, C, h, w]` as little-endian float32 `[h*w, C]` in base64."""
    rows = features[0].flatten(1).T.float().cpu().numpy()
    return base64.b64encode(rows.astype("<f4").tobytes()).decode()


def _jpeg(frame: Frame) -> str:
    content = io.BytesIO()
    Image.fromarray(frame).save(content, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"


def _draw_heat(panel: Any, weights: Floats, look: Look) -> None:
    """Each weight over the pixels that its pooling window was made of, the largest opaque."""
    height, width = look.frames[-1].shape[:2]
    # One row or column of features, of scale 0, is drawn over the whole frame.
    down, right = _feature_scales(look)
    scales = (down or 0.5 / height, right or 0.5 / width)
    # A feature is the middle of its cell; a pooling window begins with its first feature.
    ends = [
        ((look.stride * cells - 0.5) / scale, -0.5 / scale)
        for cells, scale in zip(weights.shape, scales, strict=True)
    ]
    (bottom, top), (right_end, left) = ends
    strength = weights / weights.max()
    panel.imshow(
        strength,
        cmap="jet",
        alpha=0.25 + 0.5 * strength,
        extent=(left, right_end, bottom, top),
        interpolation="nearest",
    )
    panel.set_xlim(-0.5, width - 0.5)
    panel.set_ylim(height - 0.5, -0.5)
