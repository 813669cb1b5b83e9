"""The typer application and its commands."""

import importlib.metadata
import sys
from typing import Annotated

import typer

from tdnet.architectures import model_names
from tdnet.cli.attention import attention
from tdnet.cli.eval import evaluate_checkpoint
from tdnet.cli.options import DEMO_OUTPUT, DeviceOption, SegmentOptions
from tdnet.cli.report import report
from tdnet.cli.sweep import sweep
from tdnet.cli.train import train

DEFAULT_MODEL = "td4-psp18"

app = typer.Typer(
    name="tdnet",
    help="Fast semantic segmentation of street video.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _print_version(wanted: bool) -> None:
    if not wanted:
        return
    try:
        version = importlib.metadata.version("tdnet")
    except importlib.metadata.PackageNotFoundError:
        version = "(not installed, a source tree)"
    typer.echo(f"tdnet {version}")
    raise typer.Exit


@app.callback()
def _commands(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Say the version."),
    ] = False,
) -> None:
    """Fast semantic segmentation of street video."""


@app.command()
def segment(
    video: Annotated[
        str | None,
        typer.Argument(
            help="Video file, image, folder of images (PNG, JPEG, WebP, BMP, TIFF), camera index "
            "(0 is the first), or - for a video on the standard input.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="OUT.mp4|DIR/",
            help="Overlay video (.mp4, .m4v, .mov, .mkv), replaced if it exists, or a folder for "
            "colour and label PNGs (ends in / or exists).",
            show_default=f"{DEMO_OUTPUT} with --demo",
        ),
    ] = None,
    demo: Annotated[
        bool, typer.Option("--demo", help="Segment a synthetic street clip; needs no VIDEO.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=f"{', '.join(model_names())}.",
            show_default=f"the checkpoint's, or {DEFAULT_MODEL}",
        ),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Weights: .safetensors, or a published .pkl, .pth or .pt.",
            show_default="random weights",
        ),
    ] = None,
    num_classes: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=256,
            help="Classes of a model with random weights.",
            show_default="19",
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="HxW",
            help="Height and width that frames are resized to before segmentation, e.g. 769x1537.",
            show_default="as they come",
        ),
    ] = None,
    device: DeviceOption = None,
    alpha: Annotated[
        float, typer.Option(help="Weight of the class colours in the overlay, 0 to 1.")
    ] = 0.5,
    frame_rate: Annotated[
        float,
        typer.Option(
            min=0.001, max=1000, help="Frames a second of an image folder; else it is the video's."
        ),
    ] = 17.0,
) -> None:
    """Segment a video and write an overlay video, or colour and label PNGs."""
    if demo == (video is not None):
        raise typer.BadParameter("give a VIDEO or --demo, one of them")
    if output is None and not demo:
        raise typer.BadParameter("give the result a name with -o OUT.mp4 or -o DIR/")
    if not 0.0 <= alpha <= 1.0:
        raise typer.BadParameter(f"--alpha: expected a number from 0 to 1, got {alpha}")
    if model is not None and model not in model_names():
        raise typer.BadParameter(
            f"--model: expected one of {', '.join(model_names())}, got {model!r}"
        )
    if checkpoint is not None and num_classes is not None:
        raise typer.BadParameter("--num-classes: the checkpoint has its own number of classes")
    options = SegmentOptions(
        video=video,
        output=output or DEMO_OUTPUT,
        model=model if checkpoint else model or DEFAULT_MODEL,
        checkpoint=checkpoint,
        num_classes=num_classes or 19,
        size=size,
        device=device,
        alpha=alpha,
        frame_rate=frame_rate,
    )
    # Here, since it imports torch.
    from tdnet.cli.segment import segment_to_file

    raise typer.Exit(segment_to_file(options))


app.command()(train)
app.command("eval")(evaluate_checkpoint)
app.command()(report)
app.command()(sweep)
app.command()(attention)


def main() -> None:
    """Entry point of the console script `tdnet`."""
    sys.exit(app())
