"""`tdnet eval`: how well, how steadily and how fast a checkpoint labels videos."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from tdnet.cli.options import DeviceOption

if TYPE_CHECKING:
    from tdnet.data.clips import LabelledVideos
    from tdnet.evaluation.evaluate import Orders
    from tdnet.evaluation.results import Evaluation
    from tdnet.models.stream import StreamingModel


def evaluate_checkpoint(
    checkpoint: Annotated[
        str, typer.Argument(help="Weights: .safetensors, or a published .pkl, .pth or .pt.")
    ],
    data: Annotated[
        str,
        typer.Option(metavar="NAME", help="Layout: camvid, cityscapes, folder, ..."),
    ],
    root: Annotated[str, typer.Option(metavar="DIR", help="Its folder.")],
    split: Annotated[str, typer.Option(help="Part of it: train, val, test.")] = "val",
    size: Annotated[
        str | None,
        typer.Option(
            metavar="HxW",
            help="Height and width that frames are resized to before they enter the network. "
            "Labels are compared at the size of the true ones.",
            show_default="as they come",
        ),
    ] = None,
    gap: Annotated[int, typer.Option(min=1, help="The network sees every so manyth frame.")] = 1,
    orders: Annotated[
        str,
        typer.Option(
            metavar="all|first",
            help="Mean over the m orders of the paths, as in the paper, or the first alone.",
        ),
    ] = "all",
    device: DeviceOption = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Write the results to a file, too.")
    ] = None,
) -> None:
    """Measure a checkpoint on labelled videos: mIoU, steadiness and latency."""
    # Here, since they import torch.
    from tdnet.checkpoints import load_checkpoint
    from tdnet.cli.segment import fail, parse_device, parse_size
    from tdnet.data.catalog import labelled_videos
    from tdnet.video import VideoError

    try:
        if out is not None:
            _check_writable(out)
        network_size = None if size is None else parse_size(size)
        videos = labelled_videos(data, root, split)
        model = load_checkpoint(checkpoint, device=parse_device(device))
        result = measure(
            model,
            videos,
            f"{data} {split}",
            size=network_size,
            gap=gap,
            orders=cast("Orders", orders),
        )
    except (VideoError, ValueError, RuntimeError, OSError, ImportError) as error:
        raise typer.Exit(fail(error)) from error
    # First, so that what took long to measure is seen even if the file cannot be written.
    _print(result)
    try:
        if out is not None:
            out.write_text(result.to_json(), encoding="utf-8")
    except OSError as error:
        raise typer.Exit(fail(error)) from error


def measure(model: StreamingModel, videos: LabelledVideos, data: str, **options: Any) -> Evaluation:
    """`evaluate`, with its options, behind a progress bar."""
    from tdnet.cli.progress import progress_bar
    from tdnet.evaluation.evaluate import evaluate

    with progress_bar(data, None) as bar:

        def show(done: int, total: int) -> None:
            bar.finish(total)
            bar.advance()

        return evaluate(model, videos, data=data, progress=show, **options)


def _check_writable(out: Path) -> None:
    if out.is_dir():
        raise IsADirectoryError(f"cannot write {out}: expected a file, got a folder")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"cannot write {out}: there is no folder {out.parent}")


def _print(result: Evaluation) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from tdnet.evaluation.report import class_rows, summary_rows

    console = Console()
    for heads, rows in (
        ((f"{result.model} on {result.data}", ""), summary_rows(result)),
        (("class", "IoU"), class_rows(result)),
    ):
        table = Table(*map(escape, heads))
        for cells in rows:
            table.add_row(*map(escape, cells))
        console.print(table)
