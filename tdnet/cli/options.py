"""What `tdnet segment` is asked to do. It imports nothing slow: `tdnet --help` reads it."""

from dataclasses import dataclass
from typing import Annotated

import typer

DEMO_OUTPUT = "tdnet_demo.mp4"

DeviceOption = Annotated[
    str | None,
    typer.Option(
        metavar="DEVICE",
        help="cpu, cuda or cuda:1, ...",
        show_default="cuda if there is one, else cpu",
    ),
]


@dataclass(frozen=True)
class SegmentOptions:
    """The options of `tdnet segment`, checked as far as the command line alone allows.

    Attributes:
        video: path or camera index; None for the demonstration clip.
        output: video name, or folder.
        model: model name; None if the checkpoint tells it.
        checkpoint: file of weights; None for random ones.
        num_classes: of a model with random weights.
        size: "HxW" of the network's input; None for the size of the frames.
        device: torch device; None for CUDA where there is any.
        alpha: weight of the colours in the overlay, 0 to 1.
        frame_rate: frames a second of an image folder.
    """

    video: str | None
    output: str
    model: str | None
    checkpoint: str | None
    num_classes: int
    size: str | None
    device: str | None
    alpha: float
    frame_rate: float
