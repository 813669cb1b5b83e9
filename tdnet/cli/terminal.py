"""What the command shows: lines of text and a progress bar, whatever the terminal can."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

from tdnet.files import printable


def say(text: str, stream: TextIO | None = None) -> None:
    """Print a line (on stdout if no stream is given), escaped where the terminal lacks characters.

    A terminal that was closed is no reason to fail.
    """
    stream = stream or sys.stdout
    encoding = stream.encoding or "utf-8"
    line = printable(text).encode(encoding, "backslashreplace").decode(encoding)
    try:
        print(line, file=stream, flush=True)
    except OSError:
        discard(stream)


def discard(stream: TextIO) -> None:
    """Let what is written to a stream vanish from now on, also what waits in its buffer.

    Otherwise Python's own attempt to write it at the end would replace the exit code.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


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
