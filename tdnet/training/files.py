"""What a training leaves in its folder; every file is whole under its name, or as it was before."""

from __future__ import annotations

import csv
import os
import re
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from tdnet.checkpoints import save_checkpoint
from tdnet.files import temporary_beside
from tdnet.training.optimization import TrainingStopped

_COLUMNS = ("step", "loss", "learning_rate")


class Folder:
    """The folder of a training.

    config.yaml is what it was told, state.pt all that is needed to go on, losses.csv a row a step,
    last.safetensors the model, and best.safetensors the one that was best in validation.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state_path = path / "state.pt"
        self._losses = path / "losses.csv"

    def read_state(self) -> dict[str, Any] | None:
        """What `write_state` wrote last; None if there is nothing.

        Raises:
            ValueError: the file cannot be read.
        """
        if not self.state_path.exists():
            return None
        try:
            return cast(
                "dict[str, Any]",
                torch.load(self.state_path, map_location="cpu", weights_only=True),
            )
        except Exception as error:  # damaged files raise almost anything
            raise ValueError(
                f"{self.state_path}: expected the state of a training, got a damaged file"
            ) from error

    def write_state(self, state: dict[str, Any]) -> None:
        """Raises:
        TrainingStopped: it cannot be written; what was there before is kept.
        """
        self._write(self.state_path, lambda path: _save_durably(state, path), state["step"])

    def write_model(self, model: nn.Module, name: str, step: int) -> None:
        """`name` is that of a native checkpoint.

        Raises:
            TrainingStopped: as `write_state`.
        """
        kept = self.path / name
        self._write(kept, lambda path: save_checkpoint(cast(Any, model), path), step)

    def write_text(self, name: str, text: str) -> None:
        self._write(self.path / name, lambda path: path.write_text(text), 0)

    def _write(self, path: Path, write: Any, step: int) -> None:
        # The suffix of the name tells some writers what to write.
        temporary = temporary_beside(path).with_suffix(path.suffix)
        try:
            write(temporary)
            os.replace(temporary, path)
        except (OSError, RuntimeError) as error:  # of torch's writer, for a full disk
            line = (str(error).splitlines() or [""])[0]
            kept = f"; {path.name} of before is kept" if path.exists() else ""
            raise TrainingStopped(f"step {step}: cannot write {path}: {line}{kept}") from error
        finally:
            temporary.unlink(missing_ok=True)

    def keep_losses(self, steps: int) -> None:
        """Drops the rows of later steps, which will be made again."""
        rows = []
        if self._losses.exists():
            with self._losses.open(newline="") as file:
                rows = [row for row in csv.reader(file) if _is_row(row) and int(row[0]) <= steps]
        lines = "".join(f"{','.join(row)}\n" for row in [list(_COLUMNS), *rows])
        self.write_text(self._losses.name, lines)

    def add_loss(self, step: int, loss: float, learning_rate: float) -> None:
        """Raises:
        TrainingStopped: it cannot be written.
        """
        try:
            with self._losses.open("a") as file:
                file.write(f"{step},{loss!r},{learning_rate!r}\n")
        except OSError as error:
            raise TrainingStopped(
                f"step {step}: cannot write {self._losses}: {error.strerror}"
            ) from error

    def remove_remains(self) -> None:
        """Of writings that were killed."""
        for path in self.path.glob(".*"):
            if re.fullmatch(r"\.(state|last|best|losses|config)\..+\.[0-9a-f]{8}\.\w+", path.name):
                path.unlink()


def _save_durably(state: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


def _is_row(row: list[str]) -> bool:
    """Whether it is whole: the last one may have been cut off by a kill."""
    return len(row) == len(_COLUMNS) and row[0].isdigit()
