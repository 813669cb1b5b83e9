"""A training of seconds: a small TDNet and stripes of colours that move."""

import sys
from dataclasses import replace
from pathlib import Path

import torch

from tdnet.architectures import MODELS
from tdnet.models.registry import build
from tdnet.training.config import TrainingConfig
from tdnet.training.loop import run
from tdnet.training.seeds import seed_of
from tdnet.training.task import Task

CLASSES, SIZE = 3, (32, 48)


def small_model(name="td2-espnetv2"):
    return build(replace(MODELS[name], num_classes=CLASSES, value_channels=16, norm_size=(4, 6)))


def small_config(**changes):
    config = TrainingConfig(steps=6, batch_size=4, save_every=2, device="cpu")
    config.optimizer.learning_rate = 0.02
    for name, value in changes.items():
        part, _, key = name.rpartition("__")
        setattr(getattr(config, part) if part else config, key, value)
    return config


def window(index, length):
    """Stripes whose colour tells the class: images [m, 3, H, W] and labels [H, W] of the last."""
    generator = torch.Generator().manual_seed(index)
    columns = torch.arange(SIZE[1]) // 16 + index
    images = []
    for frame in range(length):
        labels = ((columns + frame) % CLASSES).expand(SIZE)
        image = torch.nn.functional.one_hot(labels, 3).permute(2, 0, 1).float()
        images.append(image + 0.1 * torch.randn(image.shape, generator=generator))
    return torch.stack(images), labels.clone()


def batches(config):
    def make(processes, first, length):
        share = config.batch_size // processes.count
        for step in range(first, config.steps):
            begin = step * config.batch_size + processes.rank * share
            windows = [window(index, length) for index in range(begin, begin + share)]
            yield tuple(torch.stack(parts) for parts in zip(*windows, strict=True))

    return make


class Listener:
    """Keeps what it hears; calls `on_step` after each."""

    def __init__(self, on_step=lambda number: None):
        self.losses, self.scores, self._on_step = [], [], on_step

    def step(self, number, loss, rate):
        self.losses.append(loss)
        self._on_step(number)

    def validation(self, number, score):
        self.scores.append((number, score))


def make_task(name="td2-espnetv2", **options):
    def make():
        torch.manual_seed(seed_of(7))
        return Task(small_model(name), **options)

    return make


def without_dropout_and_norms():
    """What depends on which images share a process."""
    torch.nn.functional.dropout2d = lambda x, *_: x
    task = make_task()()
    task.freeze([], norms=True)
    return task


def train(config, folder, make=None, listener=None, **options):
    listener = listener or Listener()
    run(config, Path(folder), make or make_task(), batches(config), None, listener, **options)
    return listener.losses


if __name__ == "__main__":
    # small.py FOLDER STEPS BATCH KIND
    folder, steps, batch, kind = sys.argv[1:]
    torch.set_num_threads(1)
    settings = small_config(steps=int(steps), batch_size=int(batch))
    make = without_dropout_and_norms if kind == "parallel" else None
    train(settings, folder, make, Listener(lambda number: print(number, flush=True)))
