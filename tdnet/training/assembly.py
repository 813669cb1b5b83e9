"""From a config to what it names: the model and its loss, the batches, the validation."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tdnet.architectures import ModelConfig
from tdnet.checkpoints import load_checkpoint, read_pickle
from tdnet.data.augment import training_transform
from tdnet.data.batches import SeededBatches
from tdnet.data.catalog import labelled_videos
from tdnet.data.clips import LabelledVideos
from tdnet.data.window_dataset import WindowDataset
from tdnet.evaluation.evaluate import evaluate
from tdnet.models.registry import build_model
from tdnet.models.single_frame import SingleFrameModel
from tdnet.models.tdnet import TDNet
from tdnet.training.config import LossOptions, ModelOptions, TrainingConfig
from tdnet.training.imagenet import load_imagenet_weights
from tdnet.training.loop import Validate
from tdnet.training.losses import Distillation
from tdnet.training.processes import Processes
from tdnet.training.seeds import seed_of
from tdnet.training.task import Task
from tdnet.training.teacher import Teacher

IMAGENET = "imagenet"


def make_videos(config: TrainingConfig) -> LabelledVideos:
    """What the model learns from.

    Raises:
        ValueError: the data set is unknown, or its files are not as they should be.
    """
    data = config.data
    return labelled_videos(data.format, data.root, data.split)


def make_task(config: TrainingConfig, videos: LabelledVideos) -> Task:
    """The model as it is before the first step, with its loss.

    Raises:
        ValueError, FileNotFoundError: a model, an option or a file of weights that does not fit.
    """
    torch.manual_seed(seed_of(config.seed))
    model = _model(config.model, len(videos.class_names))
    loss = config.loss
    form = Distillation(
        *(loss.whole, loss.group, loss.own, loss.temperature),
        weighing=cast(Any, loss.weighing),
    )
    task = Task(
        *(model, _teacher(loss, model), form),
        hard_pixels=loss.hard_pixels,
        auxiliary=loss.auxiliary,
        temporal=loss.temporal,
    )
    task.freeze(config.model.frozen, config.model.frozen_norms)
    return task


def make_batches(
    config: TrainingConfig,
    videos: LabelledVideos,
    processes: Processes,
    first_step: int,
    length: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """This process's share of the batches from a step on; see `tdnet.training.loop.run`."""
    data = config.data
    transform = training_transform(
        (data.crop[0], data.crop[1]),
        (data.scale[0], data.scale[1]),
        flip=0.5 if data.flip else 0.0,
        jitter=data.jitter,
    )
    dataset = WindowDataset(videos, length, transform, data.step, motion_share=data.motion_share)
    batches = SeededBatches(
        *(len(dataset), config.batch_size, config.steps, config.seed, first_step),
        *(processes.rank, processes.count),
    )
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=data.workers,
        pin_memory=processes.device.type == "cuda",
    )
    return iter(loader)


def make_validation(config: TrainingConfig) -> Validate | None:
    """mIoU on the validation part, of the frames as they come; None if the config names none."""
    data = config.data
    if data.validation_split is None:
        return None
    videos = labelled_videos(data.format, data.root, data.validation_split)

    def validate(model: nn.Module) -> float:
        return evaluate(cast(Any, model), videos, orders="first", flow=None).miou

    return validate


def _model(options: ModelOptions, num_classes: int) -> TDNet | SingleFrameModel:
    model = _built(options, num_classes)
    if options.checkpoint is not None:
        start = load_checkpoint(options.checkpoint, options.name)
        _refuse_other_model(start.config, model.config, options.checkpoint)
        model.load_state_dict(start.state_dict())
    if options.path_checkpoints:
        _start_paths(model, options.path_checkpoints)
    if options.backbone_weights is not None:
        for features in _features(model):
            _load_backbone(cast(Any, features).backbone, options.backbone_weights)
    return model


def _built(options: ModelOptions, num_classes: int) -> TDNet | SingleFrameModel:
    known = [
        name
        for name, parameter in inspect.signature(build_model).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    for name in options.options:
        if name not in known:
            raise ValueError(f"model.options: expected some of {', '.join(known)}, got {name!r}")
    # YAML has no tuples.
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in options.options.items()
    }
    return build_model(options.name, num_classes, **given)


def _refuse_other_model(start: ModelConfig, model: ModelConfig, file: str) -> None:
    for field in fields(ModelConfig):
        wanted, found = getattr(model, field.name), getattr(start, field.name)
        if wanted != found:
            raise ValueError(
                f"model.checkpoint: expected {field.name} {wanted}, got {found} in {file}; "
                "model.options says what the model has"
            )


def _features(model: TDNet | SingleFrameModel) -> list[nn.Module]:
    """Of every path."""
    if isinstance(model, SingleFrameModel):
        return [model.features]
    return [cast(Any, path).features for path in model.paths]


def _start_paths(model: TDNet | SingleFrameModel, checkpoints: list[str]) -> None:
    count = model.config.num_paths
    if len(checkpoints) != count:
        raise ValueError(
            f"model.path_checkpoints: expected one for each path, got {len(checkpoints)} for "
            f"{model.config.name} of {count}"
        )
    # A shared sub-network takes the first.
    for features, file in zip(_features(model), checkpoints, strict=not model.config.shared):
        single = load_checkpoint(file)
        if not isinstance(single, SingleFrameModel):
            raise ValueError(
                f"model.path_checkpoints: expected models of single frames, got "
                f"{single.config.name} in {file}"
            )
        _load(features, single.features.state_dict(), file)


def _load_backbone(backbone: nn.Module, source: str) -> None:
    if source == IMAGENET:
        return load_imagenet_weights(cast(Any, backbone))
    if not Path(source).is_file():
        raise ValueError(f"model.backbone_weights: expected {IMAGENET!r} or a file, got {source!r}")
    try:
        weights = read_pickle(Path(source))
    except ValueError as error:
        raise ValueError(f"model.backbone_weights: {error}") from error
    # The classifier of ImageNet is no part of a backbone.
    _load(backbone, {k: v for k, v in weights.items() if not k.startswith("fc.")}, source)


def _load(module: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        line = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{source}: expected weights of {type(module).__name__}, got {line}"
        ) from (error)


def _teacher(options: LossOptions, model: TDNet | SingleFrameModel) -> Teacher | None:
    if options.teacher is None:
        return None
    teacher = load_checkpoint(options.teacher)
    if teacher.config.num_classes != model.config.num_classes:
        raise ValueError(
            f"loss.teacher: expected {model.config.num_classes} classes, "
            f"got {teacher.config.num_classes} in {options.teacher}"
        )
    if not isinstance(teacher, SingleFrameModel):
        raise ValueError(
            f"loss.teacher: expected a model of single frames, got {teacher.config.name}"
        )
    return Teacher(teacher, model.config.num_paths, published=options.published_teacher)
