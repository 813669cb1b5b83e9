"""What a training shows: a progress bar, scores, and numbers for TensorBoard."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tdnet.cli.progress import ProgressBar, progress_bar
from tdnet.cli.terminal import say


class TrainingScreen(ExitStack):
    """A progress bar, and the numbers for TensorBoard where it is installed.

    Both come with the first step: what goes wrong before it is one line.
    """

    def __init__(self, folder: Path, steps: int) -> None:
        super().__init__()
        self._folder = folder
        self._steps = steps
        self._bar: ProgressBar | None = None
        self._writer: Any = None
        self._done = 0

    def step(self, number: int, loss: float, rate: float) -> None:
        if self._bar is None:
            self._bar = self.enter_context(progress_bar(self._folder.name, self._steps))
        for _ in range(number - self._done):
            self._bar.advance()
        self._done = number
        self._add("loss", loss, number)
        self._add("learning_rate", rate, number)

    def validation(self, number: int, score: float) -> None:
        say(f"step {number}: mIoU {100 * score:.1f}")
        self._add("mIoU", score, number)

    def _add(self, name: str, value: float, step: int) -> None:
        if self._writer is None:
            self._writer = self._tensorboard(step)
        if self._writer:
            self._writer.add_scalar(name, value, step)

    def _tensorboard(self, first_step: int) -> Any:
        """False where TensorBoard is not installed."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return False
        # What was written of steps that are made again does not count.
        writer = SummaryWriter(str(self._folder / "tensorboard"), purge_step=first_step)
        self.callback(writer.close)
        return writer
