"""`tdnet attention`: where a pixel of a video looked."""

from __future__ import annotations

from collections import deque
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def attention(
    video: Annotated[str, typer.Argument(help="Video file, or folder of images.")],
    weights: Annotated[str, typer.Option(metavar="FILE", help="Checkpoint of a TDNet.")],
    frame: Annotated[int, typer.Option(min=0, help="Number of the frame, from 0.")],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="OUT.png|OUT.html",
            help="A picture, or a page in which other pixels can be pointed at.",
        ),
    ],
    pixel: Annotated[
        tuple[int, int], typer.Option(metavar="Y X", help="Row and column in the frame.")
    ],
    size: Annotated[
        str | None,
        typer.Option(
            metavar="HxW",
            help="Height and width that frames are resized to before they enter the network.",
            show_default="as they come",
        ),
    ] = None,
) -> None:
    """Draw how much of each remembered frame a pixel of a video was made of."""
    # Here, since they import torch.
    from tdnet.checkpoints import load_checkpoint
    from tdnet.cli.segment import fail, parse_size
    from tdnet.evaluation.attention import look, write_page, write_picture
    from tdnet.models import TDNet
    from tdnet.video import VideoError

    try:
        network_size = None if size is None else parse_size(size)
        model = load_checkpoint(weights)
        if not isinstance(model, TDNet):
            raise ValueError(f"--weights: expected a TDNet, got {model.config.name}")
        window = _window(video, frame, model.num_paths)
        first_path = (frame + 1) % model.num_paths  # frame 0 takes path 0
        seen = look(model, window, first_path, network_size)
        write = write_page if output.suffix.lower() == ".html" else write_picture
        write(output, seen, pixel, f"frame {frame}")
    except (VideoError, ValueError, RuntimeError, OSError, ImportError) as error:
        raise typer.Exit(fail(error)) from error


def _window(video: str, last: int, length: int) -> list[NDArray[np.uint8]]:
    """So many frames of a video, the last one by its number."""
    from tdnet.video import open_source

    if last < length - 1:
        raise ValueError(
            f"--frame: expected {length - 1} or more, so that frames are before it, got {last}"
        )
    frames = deque(islice(enumerate(open_source(video, Fraction(10))), last + 1), length)
    if not frames or frames[-1][0] < last:
        count = frames[-1][0] + 1 if frames else 0
        raise ValueError(f"--frame: expected one of the {count} frames of {video}, got {last}")
    return [frame.image for _, frame in frames]
