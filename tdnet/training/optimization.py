"""One step of SGD on a batch, alone or together with other processes."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tdnet.data.palette import IGNORE_LABEL
from tdnet.training.config import OptimizerOptions, TrainingConfig
from tdnet.training.processes import Processes
from tdnet.training.seeds import seed_of
from tdnet.training.task import Task


class TrainingStopped(RuntimeError):
    """Why a training cannot go on; its text is for the user."""


class Learner:
    """All that changes while a model learns.

    Attributes:
        task: the model and its loss.
        step: how many steps were made.
    """

    def __init__(self, config: TrainingConfig, task: Task, processes: Processes) -> None:
        parts = config.accumulation * processes.count
        if config.batch_size % parts:
            raise ValueError(
                f"batch_size: expected a multiple of accumulation times processes, {parts}, "
                f"got {config.batch_size}"
            )
        self._config = config
        self._processes = processes
        self.step = 0
        self.task = task.to(processes.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if processes.count > 1 and processes.device.type == "cuda":
            self.task = nn.SyncBatchNorm.convert_sync_batchnorm(self.task)
        self._wrapped: nn.Module = self.task
        if processes.count > 1:
            # A step trains one path's last hop and head; those of the others get no gradient.
            self._wrapped = DistributedDataParallel(self.task, find_unused_parameters=True)
        options = config.optimizer
        self._optimizer = torch.optim.SGD(
            [parameter for parameter in task.parameters() if parameter.requires_grad],
            lr=options.learning_rate,
            momentum=options.momentum,
            weight_decay=options.weight_decay,
        )
        is_half = config.precision == "float16"
        self._scaler = torch.amp.GradScaler(processes.device.type, enabled=is_half)
        self._average: AveragedModel | None = None
        if options.average is not None:
            self._average = AveragedModel(
                task.model, multi_avg_fn=_moving_average(options.average), use_buffers=True
            )

    @property
    def result(self) -> nn.Module:
        """The model that is evaluated and kept: the average of the weights, if there is one."""
        return self.task.model if self._average is None else self._average.module

    def state(self) -> dict[str, Any]:
        """All that `load_state` needs: tensors, numbers and text."""
        return {
            "step": self.step,
            # A teacher never changes, and comes with the config.
            "task": {k: x for k, x in self.task.state_dict().items() if not _of_teacher(k)},
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "average": None if self._average is None else self._average.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        teacher = {k: x for k, x in self.task.state_dict().items() if _of_teacher(k)}
        self.task.load_state_dict(state["task"] | teacher)
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        if self._average is not None:
            self._average.load_state_dict(state["average"])

    def learn(self, images: Tensor, labels: Tensor) -> float:
        """One step on this process's share of a batch.

        Args:
            images: normalised, ``[B, m, 3, H, W]``.
            labels: of the last frames, ``[B, H, W]``.

        Returns:
            The loss of the whole batch.

        Raises:
            TrainingStopped: it is not finite, or a part of the batch is too small for the norms.
        """
        config, processes = self._config, self._processes
        # All that is random in a step depends on the seed and its number: nothing of a random state
        # has to be kept to go on as if never stopped.
        path = seed_of(config.seed, self.step) % self.task.num_paths
        torch.manual_seed(seed_of(config.seed, self.step, processes.rank))
        rate = learning_rate(config.optimizer, config.steps, self.step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        images = images.to(processes.device, non_blocking=True)
        labels = labels.to(processes.device, non_blocking=True)
        try:
            loss = self._backward(images, labels, path)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            part = len(images) // config.accumulation
            raise TrainingStopped(
                f"batch_size: expected 2 windows or more at once for the model's norms, got {part}"
            ) from error
        if not math.isfinite(loss):
            raise TrainingStopped(f"step {self.step + 1}: expected a finite loss, got {loss}")
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        if self._average is not None:
            self._average.update_parameters(self.task.model)
        self.step += 1
        return loss

    def _backward(self, images: Tensor, labels: Tensor, path: int) -> float:
        """Adds up the gradients of the parts of a batch; its loss."""
        count = self._config.accumulation
        labelled = self._processes.sum((labels != IGNORE_LABEL).sum())
        pixels = max(1.0, float(labelled)) / (count * self._processes.count)
        total = torch.zeros((), device=images.device)
        parts = list(zip(images.chunk(count), labels.chunk(count), strict=True))
        for index, (some_images, some_labels) in enumerate(parts):
            with self._context(is_last=index == len(parts) - 1):
                loss = self._wrapped(some_images, some_labels, path, pixels) / count
                self._scaler.scale(loss).backward()
            total += loss.detach()
        return float(self._processes.sum(total)) / self._processes.count

    def _context(self, is_last: bool) -> AbstractContextManager[Any]:
        """Of a forward and a backward pass: the precision; gradients meet in the last part."""
        stack = ExitStack()
        if isinstance(self._wrapped, DistributedDataParallel) and not is_last:
            stack.enter_context(self._wrapped.no_sync())
        stack.enter_context(_autocast(self._config.precision, self._processes.device))
        return stack


def _of_teacher(name: str) -> bool:
    return name.startswith("teacher.")


def _moving_average(decay: float) -> Callable[[Any, Any, Any], None]:
    """Exponential; over the first steps it forgets faster, or the random start would stay in it.

    The rule is that of TensorFlow's ExponentialMovingAverage: (1 + n) / (10 + n) after n steps.
    """

    def update(averaged: Any, current: Any, count: Any) -> None:
        steps = int(count)
        rate = min(decay, (1 + steps) / (10 + steps))
        get_ema_multi_avg_fn(rate)(averaged, current, count)

    return update


def learning_rate(options: OptimizerOptions, steps: int, step: int) -> float:
    """Of step 0 to steps - 1 (Sec. 5.1), after a linear warm-up."""
    rate = options.learning_rate * (1 - step / steps) ** options.power
    return rate * min(1.0, (step + 1) / options.warm_up) if options.warm_up else rate


def _autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, getattr(torch, precision))
