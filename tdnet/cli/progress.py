"""A progress bar, where the package rich is installed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from tdnet.files import printable


class ProgressBar(Protocol):
    """Counts frames before the eyes of the user."""

    def advance(self) -> None: ...

    def finish(self, total: int) -> None: ...


class NoProgressBar:
    """Where rich is not installed."""

    def advance(self) -> None:
        pass

    def finish(self, total: int) -> None:
        pass


@contextmanager
def progress_bar(name: str, total: int | None) -> Iterator[ProgressBar]:
    """A progress bar on stderr within the `with` block; total None if it is unknown."""
    try:
        from tdnet.cli.rich_progress import rich_progress_bar
    except ImportError:
        yield NoProgressBar()
        return
    with rich_progress_bar(printable(name), total) as bar:
        yield bar
