"""`tdnet sweep`: a table of the paper, from labelled videos, by one command."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tdnet.cli.train import interrupted, train_in, without_traceback

if TYPE_CHECKING:
    from tdnet.evaluation.report import Row
    from tdnet.training.config import TrainingConfig
    from tdnet.training.sweep import EvaluationOptions, Sweep, Training


def sweep(
    table: Annotated[
        Path, typer.Argument(metavar="SWEEP.yaml", help="Such as those of configs/sweeps/.")
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Folder of trainings/, which several sweeps of one config may share, and of the "
            "table. The same command goes on from what is there.",
        ),
    ],
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="CONFIG.yaml", help="What is trained, in place of the sweep's own config."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each kind, a seed each.")] = 1,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="For all trainings: data.root=/data"),
    ] = None,
) -> None:
    """Train and measure all rows of a table, and write it (Markdown) with a plot."""
    raise typer.Exit(run_sweep(table, output, config, seeds, settings or []))


def run_sweep(
    table: Path, output: Path, config: Path | None, seeds: int, settings: Sequence[str]
) -> int:
    """Do it, saying on stderr what goes wrong, and return the exit code.

    Trainings and results that are there are not made again.
    """
    # Here, since they import torch.
    from tdnet.cli.segment import fail
    from tdnet.cli.terminal import say
    from tdnet.evaluation.report import write_report
    from tdnet.training.sweep import load_sweep, trainings
    from tdnet.video import VideoError

    try:
        if (processes := os.environ.get("WORLD_SIZE", "1")) != "1":
            raise ValueError(f"sweep: expected one process, got {processes}")
        plan = load_sweep(table)
        if config is None:
            if plan.config is None:
                raise ValueError(f"config: expected one in {table} or by --config, got none")
            config = table.parent / plan.config
        trained = trainings(plan, config, settings)
        results = output / table.stem
        for index in range(seeds):
            for training in trained:
                seeded = replace(training.config, seed=training.config.seed + index)
                folder = output / "trainings" / f"{training.folder}-{seeded.seed}"
                stopped = train_in(folder, seeded)
                if stopped is not None:
                    return interrupted(stopped)
                for name, options in plan.evaluations.items():
                    place = _place(results, training, name, index)
                    _measure(folder / "last.safetensors", seeded, options, place)
        rows = _rows(plan, trained, results, seeds)
        for path in write_report(rows, results, plan.about):
            say(str(path))
    except (VideoError, ValueError, RuntimeError, OSError, ImportError) as error:
        return fail(without_traceback(error))
    return 0


def _place(results: Path, training: Training, evaluation: str, index: int) -> Path:
    """The file of a result, in the folder of its row."""
    from tdnet.training.sweep import row_name

    seed = training.config.seed + index
    return results / row_name(training.name, evaluation) / f"seed-{seed}.json"


def _measure(
    weights: Path, config: TrainingConfig, options: EvaluationOptions, place: Path
) -> None:
    """Measure weights, unless that was done after they were written."""
    from tdnet.architectures import MODELS
    from tdnet.checkpoints import load_checkpoint
    from tdnet.cli.eval import measure
    from tdnet.cli.segment import parse_device
    from tdnet.cli.terminal import say
    from tdnet.data.catalog import labelled_videos
    from tdnet.evaluation.report import read_result
    from tdnet.files import replace_text
    from tdnet.models.tdnet import TDNet

    split = str(config.data.validation_split)
    data = f"{config.data.format} {split}"
    survivors = options.surviving_paths or MODELS[config.model.name].num_paths
    if place.exists() and place.stat().st_mtime_ns >= weights.stat().st_mtime_ns:
        found = read_result(place)
        if (found.data, found.gap, found.surviving_paths) == (data, options.gap, survivors):
            return
    model = load_checkpoint(weights, device=parse_device(config.device))
    if isinstance(model, TDNet):
        model.surviving_paths = survivors
    videos = labelled_videos(config.data.format, config.data.root, split)
    result = measure(model, videos, data, gap=options.gap)
    place.parent.mkdir(parents=True, exist_ok=True)
    replace_text(place, result.to_json())
    say(f"{place}: mIoU {100 * result.miou:.1f}")


def _rows(plan: Sweep, trained: Sequence[Training], results: Path, seeds: int) -> list[Row]:
    """With the numbers of the paper beside them, and their places in the plot."""
    from tdnet.evaluation.report import Row, read_result
    from tdnet.training.sweep import row_name

    rows = []
    for training in trained:
        for evaluation in plan.evaluations:
            name = row_name(training.name, evaluation)
            files = [_place(results, training, evaluation, index) for index in range(seeds)]
            rows.append(
                Row(
                    name,
                    tuple(map(read_result, files)),
                    curve=training.name if evaluation else "",
                    place=evaluation or training.name,
                    told={
                        f"paper: {column}": str(numbers.get(name, "-"))
                        for column, numbers in plan.paper.items()
                    },
                )
            )
    return rows
