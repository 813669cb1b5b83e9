"""`tdnet report`: results of several models side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    results: Annotated[
        list[Path],
        typer.Argument(
            metavar="RESULTS.json|DIR...",
            help="Files of tdnet eval --out; or folders of them, each of the trainings of one "
            "model, whose mean is a row.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="DIR", help="Folder for results.md and results.png."
        ),
    ],
) -> None:
    """Write a table (Markdown) and a plot of several results of tdnet eval."""
    # Here, since they import torch and NumPy.
    from tdnet.cli.segment import fail
    from tdnet.cli.terminal import say
    from tdnet.evaluation.report import read_results, write_report

    try:
        for path in write_report(read_results(results), output):
            say(str(path))
    except (ValueError, OSError, ImportError) as error:
        raise typer.Exit(fail(error)) from error
