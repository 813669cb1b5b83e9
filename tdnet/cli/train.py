"""`tdnet train`: from labelled videos to weights."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tdnet.training.config import TrainingConfig


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
    from tdnet.cli.segment import fail
    from tdnet.cli.terminal import say
    from tdnet.training.config import load_config
    from tdnet.video import VideoError

    try:
        stopped = train_in(folder, load_config(config_path, settings))
    except (VideoError, ValueError, RuntimeError, OSError, ImportError) as error:
        return fail(without_traceback(error))
    if stopped is not None:
        return interrupted(stopped)
    if _speaks():
        say(f"weights: {folder / 'last.safetensors'}")
    return 0


def train_in(folder: Path, config: TrainingConfig) -> signal.Signals | None:
    """Train to the end, from where a training in the folder was.

    Returns:
        The signal that ended it before; None: it came to its end.

    Raises:
        VideoError, ValueError, RuntimeError, OSError, ImportError: what went wrong.
    """
    from tdnet.cli.training_screen import TrainingScreen
    from tdnet.training import assembly
    from tdnet.training.loop import run
    from tdnet.video import InterruptFlag

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
    # Of several processes another one may have got it.
    return None if finished else flag.signal or signal.SIGTERM


def interrupted(request: signal.Signals) -> int:
    """Say which signal ended a training, and return the exit code."""
    from tdnet.cli.segment import INTERRUPTED
    from tdnet.cli.terminal import say

    if _speaks():
        say(f"tdnet: interrupted ({request.name}); the same command goes on", sys.stderr)
    return INTERRUPTED + request


def _speaks() -> bool:
    return os.environ.get("RANK", "0") == "0"


def without_traceback(error: Exception) -> Exception:
    """torch puts the traceback of a process that loads data before what went wrong there."""
    lines = str(error).strip().splitlines()
    if lines and "DataLoader worker process" in lines[0]:
        return RuntimeError(lines[-1].strip())
    return error
