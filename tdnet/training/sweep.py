"""A table of the paper as a file: what it trains, and how it measures what it trained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path

from tdnet.architectures import MODELS, check_among
from tdnet.files import shown
from tdnet.training.config import TrainingConfig, load_config, read_yaml


@dataclass
class EvaluationOptions:
    """How a trained model is measured.

    Attributes:
        gap: the network sees every gap-th frame.
        surviving_paths: frames that labels are made of; None: as many as the model has paths.
    """

    gap: int = 1
    surviving_paths: int | None = None


@dataclass
class Sweep:
    """A table: each of its trainings, measured in each of its ways.

    Attributes:
        about: what stands above the table.
        config: file of what the trainings have in common, seen from the sweep's own folder.
        needs: keys that must have a value in that config, such as loss.teacher, for trainings to
            differ.
        baseline: name of a first training: of the config's sub-network alone, as a model of single
            frames, without a teacher; None: there is none.
        trainings: by name, the "key=value" in which each differs from the config.
        evaluations: by name.
        paper: numbers of the paper: of each column, by the names of rows.
    """

    about: str = ""
    config: str | None = None
    needs: list[str] = field(default_factory=list)
    baseline: str | None = None
    trainings: dict[str, list[str]] = field(default_factory=dict)
    evaluations: dict[str, EvaluationOptions] = field(default_factory=dict)
    paper: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Training:
    """One of a sweep's.

    Attributes:
        name: in the sweep; "" if it is the only one.
        folder: name of its folder, the same for the same settings in other sweeps.
        config: with the first of the seeds.
    """

    name: str
    folder: str
    config: TrainingConfig


def load_sweep(path: Path | str) -> Sweep:
    """The sweep of a YAML file.

    Raises:
        ValueError: no such file, no YAML, an unknown key, or a value that cannot be.
    """
    sweep = read_yaml(Sweep, "sweep", path)
    try:
        return _checked(sweep)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def trainings(
    sweep: Sweep, config_path: Path | str, settings: Sequence[str] = ()
) -> list[Training]:
    """What a sweep trains.

    Args:
        sweep: of `load_sweep`.
        config_path: file of what the trainings have in common.
        settings: "key=value" for all of them; where a training says otherwise, that holds.

    Raises:
        ValueError: a config is refused, lacks what the sweep needs, or names a model that cannot
            be measured as the sweep does.
    """
    common = load_config(config_path, settings)
    for key in sweep.needs:
        if attrgetter(key)(common) is None:
            raise ValueError(f"{key}: expected a value in {config_path} or by --set, got none")
    found = []
    if sweep.baseline is not None:
        found.append(Training(sweep.baseline, "single-frames", _of_single_frames(common)))
    for name, changes in sweep.trainings.items():
        folder = "+".join(changes).replace("/", "_") or "base"
        found.append(Training(name, folder, load_config(config_path, [*settings, *changes])))
    for training in found:
        _check_can_be_measured(training.config, sweep.evaluations.values())
    return found


def row_name(training: str, evaluation: str) -> str:
    """Of the names of a training and of an evaluation, of which one may be ""."""
    return ", ".join(name for name in (training, evaluation) if name)


def _checked(sweep: Sweep) -> Sweep:
    """With one training, or one evaluation, where the file tells none."""
    if not (sweep.trainings or sweep.evaluations):
        raise ValueError("trainings: expected some, or evaluations, got neither")
    sweep = replace(
        sweep,
        trainings=sweep.trainings or {"": []},
        evaluations=sweep.evaluations or {"": EvaluationOptions()},
    )
    for key in sweep.needs:
        try:
            attrgetter(key)(TrainingConfig())
        except AttributeError as error:
            raise ValueError(f"needs: expected keys of a config, got {shown(key)}") from error
    for name, options in sweep.evaluations.items():
        for key in ("gap", "surviving_paths"):
            value = getattr(options, key)
            if value is not None and value < 1:
                raise ValueError(f"evaluations.{name}.{key}: expected at least 1, got {value}")
    rows = list(_row_names(sweep))
    for name in rows:
        # They are names of folders.
        if not name.isprintable() or "/" in name or name.startswith("."):
            raise ValueError(
                f"rows: expected names of printable characters without / and no dot first, "
                f"got {shown(name)}"
            )
        if rows.count(name) > 1:
            raise ValueError(f"rows: expected a name for each, got {shown(name)} twice")
    for column, numbers in sweep.paper.items():
        for name in numbers:
            if name not in rows:
                raise ValueError(
                    f"paper.{column}: expected some of {', '.join(rows)}, got {shown(name)}"
                )
    return sweep


def _row_names(sweep: Sweep) -> Iterator[str]:
    baseline = [] if sweep.baseline is None else [sweep.baseline]
    for training in (*baseline, *sweep.trainings):
        for evaluation in sweep.evaluations:
            yield row_name(training, evaluation)


def _of_single_frames(config: TrainingConfig) -> TrainingConfig:
    """What the sub-network of a TDNet learns alone; it starts where the first path does."""
    check_among("model.name", config.model.name, MODELS)
    model = MODELS[config.model.name]
    names = [
        single.name
        for single in MODELS.values()
        if single.num_paths == 1
        and (single.backbone, single.features) == (model.backbone, model.features)
    ]
    if model.num_paths == 1 or not names:
        raise ValueError(
            f"model.name: expected a TDNet whose sub-network is a model, got {model.name}"
        )
    alone = replace(
        config.model,
        name=names[0],
        options={},
        checkpoint=None,
        path_checkpoints=config.model.path_checkpoints[:1],
        frozen=[],
    )
    return replace(config, model=alone, loss=replace(config.loss, teacher=None))


def _check_can_be_measured(
    config: TrainingConfig, evaluations: Iterable[EvaluationOptions]
) -> None:
    check_among("model.name", config.model.name, MODELS)
    paths = MODELS[config.model.name].num_paths
    for options in evaluations:
        if options.surviving_paths is not None and options.surviving_paths > paths:
            raise ValueError(
                f"surviving_paths: expected from 1 to {paths} for {config.model.name}, "
                f"got {options.surviving_paths}"
            )
    if config.data.validation_split is None:
        raise ValueError("data.validation_split: expected a part to measure on, got none")
