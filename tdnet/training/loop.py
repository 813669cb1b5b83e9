"""A training from its config to its weights; killed at any time, it goes on where it was."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tdnet.training.config import TrainingConfig, as_yaml
from tdnet.training.files import Folder
from tdnet.training.optimization import Learner, TrainingStopped, learning_rate
from tdnet.training.processes import Processes, joined_processes
from tdnet.training.task import Task

# What may differ from the training that goes on: no number depends on it, but for the rounding of
# another device.
_MAY_DIFFER = {
    *("data.root", "data.workers", "data.validation_split"),
    *("device", "save_every", "validate_every"),
}

MakeTask = Callable[[], Task]
Batches = Iterable[tuple[Tensor, Tensor]]
Validate = Callable[[nn.Module], float]


class Report(Protocol):
    """Hears of every step, in the first process."""

    def step(self, number: int, loss: float, rate: float) -> None: ...

    def validation(self, number: int, score: float) -> None: ...


def run(
    config: TrainingConfig,
    folder: Path,
    make_task: MakeTask,
    make_batches: Callable[[Processes, int, int], Batches],
    validate: Validate | None,
    report: Report,
    stop_requested: Callable[[], bool] = lambda: False,
) -> bool:
    """Trains to the end, from the state in the folder if there is one.

    Args:
        folder: see `Folder`; made if it is not there.
        make_task: the model with its loss, as it is at the start.
        make_batches: this process's share of the batches from a step on, of windows of a length:
            images ``[B, length, 3, H, W]`` and labels ``[B, H, W]``.
        validate: the score of a model in eval mode, the higher the better; None: there is none.
        stop_requested: asked after each step; the state is then written, and the training ends.

    Returns:
        Whether it came to its end.

    Raises:
        TrainingStopped: the loss is not finite, or a file cannot be written.
        ValueError: the folder holds another training.
    """
    with joined_processes(config.device) as processes:
        learner = Learner(config, make_task(), processes)
        training = _Training(config, Folder(folder), learner, processes, report)
        training.go_on()
        batches = make_batches(processes, learner.step, learner.task.window_length)
        return training.run(batches, validate, stop_requested)


class _Training:
    def __init__(
        self,
        config: TrainingConfig,
        folder: Folder,
        learner: Learner,
        processes: Processes,
        report: Report,
    ) -> None:
        self._config = config
        self._folder = folder
        self._learner = learner
        self._processes = processes
        self._report = report
        self._best: float | None = None

    def go_on(self) -> None:
        """From the state in the folder, or from the start."""
        state = self._folder.read_state()
        if state is not None:
            _refuse_other_training(self._folder.path, state["config"], _flat(self._config))
            self._learner.load_state(state["learner"])
            self._best = state["best"]
        if self._processes.is_first:
            self._folder.path.mkdir(parents=True, exist_ok=True)
            self._folder.remove_remains()
            self._folder.write_text("config.yaml", as_yaml(self._config))
            self._folder.keep_losses(self._learner.step)

    def run(
        self, batches: Batches, validate: Validate | None, stop_requested: Callable[[], bool]
    ) -> bool:
        config, learner = self._config, self._learner
        iterator = iter(batches)
        learner.task.train()
        stopped = False
        while learner.step < config.steps and not stopped:
            images, labels = next(iterator)
            try:
                loss = learner.learn(images, labels)
            except TrainingStopped as error:
                raise TrainingStopped(f"{error}; {self._kept()}") from error
            if self._processes.is_first:
                rate = learning_rate(config.optimizer, config.steps, learner.step - 1)
                self._folder.add_loss(learner.step, loss, rate)
                self._report.step(learner.step, loss, rate)
            is_last = learner.step == config.steps
            stopped = self._processes.any(stop_requested())
            if self._processes.is_first and (
                is_last or stopped or learner.step % config.save_every == 0
            ):
                self._save()
            if validate and (is_last or learner.step % config.validate_every == 0):
                self._validate(validate)
        return learner.step == config.steps

    def _validate(self, validate: Validate) -> None:
        """In the first process; the others wait for it at their next step."""
        if not self._processes.is_first:
            return
        model = self._learner.result
        score = validate(model.eval())
        self._learner.task.train()
        self._report.validation(self._learner.step, score)
        if self._best is None or score > self._best:
            self._best = score
            self._folder.write_model(model, "best.safetensors", self._learner.step)
            self._save()

    def _save(self) -> None:
        learner = self._learner
        for name, tensor in learner.result.state_dict().items():
            if not torch.isfinite(tensor).all():
                raise TrainingStopped(
                    f"step {learner.step}: expected finite weights, got {name} with others; "
                    f"{self._kept()}"
                )
        state = {"config": _flat(self._config), "best": self._best, "learner": learner.state()}
        self._folder.write_model(learner.result, "last.safetensors", learner.step)
        self._folder.write_state({"step": learner.step, **state})

    def _kept(self) -> str:
        if not self._folder.state_path.exists():
            return "no state was written yet"
        last = self._folder.path / "last.safetensors"
        return (
            f"{self._folder.state_path} is the last good state; other settings may go on from its "
            f"weights in another folder: model.checkpoint={last}"
        )


def _flat(value: Any, name: str = "") -> dict[str, str]:
    """A config as names such as data.root and values as text."""
    if not is_dataclass(value):
        return {name: repr(value)}
    found: dict[str, str] = {}
    for field in fields(value):
        found |= _flat(getattr(value, field.name), f"{name}.{field.name}".lstrip("."))
    return found


def _refuse_other_training(path: Path, before: dict[str, str], now: dict[str, str]) -> None:
    for name, value in now.items():
        if before.get(name) != value and name not in _MAY_DIFFER:
            raise ValueError(
                f"{path}: expected {name}: {before.get(name)} as in the training there, "
                f"got {value}; give another folder, or remove this one"
            )
