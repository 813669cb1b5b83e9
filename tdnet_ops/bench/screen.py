"""What people see of a run: lines, tables, and what is being measured."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

# Wide enough for every column where the output is no terminal.
FILE_WIDTH = 400


@dataclass
class Table:
    """Cells of text: names in the first column, numbers in the others."""

    title: str
    columns: Sequence[str]
    rows: list[tuple[Sequence[str], str | None]] = field(default_factory=list)
    """Cells, and rich's name of their style."""


class Screen(Protocol):
    def say(self, line: str) -> None:
        """Prints a line as it is."""

    def show(self, table: Table) -> None: ...

    def status(self, text: str) -> contextlib.AbstractContextManager[object]:
        """Shows what is going on while the block runs."""


class PlainScreen:
    """Without the package rich, which a machine with a GPU may lack."""

    def say(self, line: str) -> None:
        print(line, flush=True)

    def show(self, table: Table) -> None:
        lines = [table.columns, *(cells for cells, _ in table.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        print(f"\n{table.title}")
        for name, *numbers in lines:
            right = [cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=True)]
            print("  ".join([name.ljust(widths[0]), *right]))
        print(flush=True)

    def status(self, text: str) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext()


class RichScreen:
    """Writes to stdout, never narrower than the tables if that is a file.

    Raises:
        ImportError: rich is not installed.
    """

    def __init__(self) -> None:
        from rich.console import Console

        made = Console(highlight=False)
        self._console = made if made.is_terminal else Console(highlight=False, width=FILE_WIDTH)
        self._progress = Console(stderr=True)

    def say(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, markup=False)

    def show(self, table: Table) -> None:
        from rich import box
        from rich import table as rich

        shown = rich.Table(title=table.title, box=box.SIMPLE_HEAD, title_justify="left")
        for number, column in enumerate(table.columns):
            shown.add_column(column, justify="right" if number else "left")
        for cells, style in table.rows:
            shown.add_row(*cells, style=style)
        self._console.print(shown)

    def status(self, text: str) -> contextlib.AbstractContextManager[object]:
        return self._progress.status(text)


def screen() -> Screen:
    """By rich if it is installed."""
    try:
        return RichScreen()
    except ImportError:
        return PlainScreen()
