"""The progress bar of the package rich."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from tdnet.cli.terminal import discard


class _Terminal:
    """Standard error, which may be closed while the bar is drawn."""

    def __init__(self) -> None:
        self._stream = sys.stderr

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            discard(self._stream)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            discard(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class RichProgressBar:
    """See `tdnet.cli.progress.ProgressBar`."""

    def __init__(self, progress: Progress, task: TaskID):
        self._progress = progress
        self._task = task

    def advance(self) -> None:
        self._progress.advance(self._task)

    def finish(self, total: int) -> None:
        self._progress.update(self._task, total=total)


@contextmanager
def rich_progress_bar(name: str, total: int | None) -> Iterator[RichProgressBar]:
    """A progress bar on stderr within the `with` block; total None if it is unknown."""
    progress = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TaskProgressColumn(show_speed=True),
        TimeRemainingColumn(),
        console=Console(file=cast(TextIO, _Terminal())),
    )
    with progress:
        yield RichProgressBar(progress, progress.add_task(name, total=total))
