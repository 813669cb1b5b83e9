"""`tdnet train`: from labelled videos to weights."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer


def train(
    config: Annotated[str, typer.Argument(help="YAML file, such as those of configs/.")],
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Folder of the weights, and of the state from which the same command goes on.",
        ),
    ],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="In place of the file's: data.root=/data"),
    ] = None,
) -> None:
    """Train a model on labelled videos. Under torchrun, on several GPUs."""
    raise typer.Exit(run_training(config, Path(output), settings or []))


def run_training(config_path: str, folder: Path, settings: Sequence[str]) -> int:
    """Train, saying on stderr what goes wrong, and return the exit code.

    Started again with the same arguments, it goes on where it was.
    """
    # Here, since they import torch.
    from tdnet.cli.segment import INTERRUPTED, fail
    from tdnet.cli.terminal import say
    from tdnet.cli.training_screen import TrainingScreen
    from tdnet.training import assembly
    from tdnet.training.config import load_config
    from tdnet.training.loop import run
    from tdnet.video import InterruptFlag, VideoError

    try:
        config = load_config(config_path, settings)
        videos = assembly.make_videos(config)
        with InterruptFlag() as flag, TrainingScreen(folder, config.steps) as screen:
            finished = run(
                config,
                folder,
                partial(assembly.make_task, config, videos),
                partial(assembly.make_batches, config, videos),
                assembly.make_validation(config),
                screen,
                lambda: flag.signal is not None,
            )
    except (VideoError, ValueError, RuntimeError, OSError, ImportError) as error:
        return fail(_without_traceback(error))
    speaks = os.environ.get("RANK", "0") == "0"
    if not finished:
        # Of several processes another one may have got it.
        request = flag.signal or signal.SIGTERM
        if speaks:
            say(f"tdnet: interrupted ({request.name}); the same command goes on", sys.stderr)
        return INTERRUPTED + request
    if speaks:
        say(f"weights: {folder / 'last.safetensors'}")
    return 0


def _without_traceback(error: Exception) -> Exception:
    """torch puts the traceback of a process that loads data before what went wrong there."""
    lines = str(error).strip().splitlines()
    if lines and "DataLoader worker process" in lines[0]:
        return RuntimeError(lines[-1].strip())
    return error
