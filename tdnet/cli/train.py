"""What `tdnet train` does once its options are parsed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from tdnet.cli.progress import ProgressBar, progress_bar
from tdnet.cli.segment import FAILED, INTERRUPTED
from tdnet.cli.terminal import say
from tdnet.training import assembly
from tdnet.training.config import load_config
from tdnet.training.loop import run
from tdnet.video.pipeline import InterruptFlag


def train(config_path: str, output: str, settings: Sequence[str]) -> int:
    """Train, saying on stderr what goes wrong, and return the exit code.

    Started again with the same arguments, it goes on where it was.
    """
    folder = Path(output)
    try:
        config = load_config(config_path, settings)
        videos = assembly.make_videos(config)
        with InterruptFlag() as flag, _Screen(folder, config.steps) as screen:
            finished = run(
                config,
                folder,
                partial(assembly.make_task, config, videos),
                partial(assembly.make_batches, config, videos),
                assembly.make_validation(config),
                screen,
                lambda: flag.signal is not None,
            )
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        say(f"tdnet: error: {' '.join(str(error).split())}", sys.stderr)
        return FAILED
    if not finished:
        assert flag.signal is not None
        say(f"tdnet: interrupted ({flag.signal.name}); the same command goes on", sys.stderr)
        return INTERRUPTED + flag.signal
    say(f"weights: {folder / 'last.safetensors'}")
    return 0


class _Screen(ExitStack):
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
