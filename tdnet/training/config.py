"""What a training is told: a YAML file, read by OmegaConf, which refuses what it does not know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

from tdnet.extras import extra_package
from tdnet.files import printable
from tdnet.training.losses import PAPER, Weighing

MISSING: Any = "???"  # OmegaConf's word for a value that must be given

T = TypeVar("T")


@dataclass
class ModelOptions:
    """Which model learns, and what it starts from.

    Attributes:
        name: of `tdnet.models.model_names()`.
        options: of `tdnet.models.build_model`, such as pooling_stride: 4.
        checkpoint: weights of the same model to start from.
        path_checkpoints: for each path a model of single frames, whose features it starts from
            (stages: sub-networks first, then their fusion). A shared sub-network starts from the
            first, a model of single frames from its only one.
        backbone_weights: a file of a backbone's weights for every path, by torch.save, as
            torchvision's for the ResNets without the deep stem.
        frozen: patterns of names, such as "paths.*.features": parameters that do not learn, with
            the norms among them as in eval mode.
        frozen_norms: every BatchNorm uses its running statistics and does not learn.
    """

    name: str = MISSING
    options: dict[str, Any] = field(default_factory=dict)
    checkpoint: str | None = None
    path_checkpoints: list[str] = field(default_factory=list)
    backbone_weights: str | None = None
    frozen: list[str] = field(default_factory=list)
    frozen_norms: bool = False


@dataclass
class DataOptions:
    """Which frames it learns from.

    Attributes:
        format: of `tdnet.data.catalog.labelled_videos`.
        root: its folder.
        split: the part to learn from.
        validation_split: the part to choose the best weights by; None: the last ones are kept.
        step: frames from one of a window to the next.
        crop: height and width of the images.
        scale: the least and the largest factor by which images are resized first.
        flip: half of the windows are mirrored.
        jitter: how much brightness, contrast and saturation vary, 0 to 1.
        motion_share: of the windows, how many are a moved still in place of real frames.
        workers: processes that load.
    """

    format: str = MISSING
    root: str = MISSING
    split: str = "train"
    validation_split: str | None = "val"
    step: int = 1
    crop: list[int] = field(default_factory=lambda: [768, 768])
    scale: list[float] = field(default_factory=lambda: [0.5, 2.0])
    flip: bool = True
    jitter: float = 0.0
    motion_share: float = 0.0
    workers: int = 2


@dataclass
class OptimizerOptions:
    """SGD, and the course of its learning rate (Sec. 5.1): rate (1 - step / steps)^power.

    Attributes:
        learning_rate: at the start.
        momentum, weight_decay: of torch.optim.SGD.
        power: of the decay.
        warm_up: steps over which the rate grows to that course from 0.
        average: decay of the exponential moving average that is evaluated and kept, such as 0.999,
            smaller over the first steps; None: the weights themselves.
    """

    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    power: float = 0.9
    warm_up: int = 0
    average: float | None = None


@dataclass
class LossOptions:
    """Cross entropy, and what is added to it.

    Attributes:
        hard_pixels: whether the cross entropy is of hard pixels alone.
        teacher: checkpoint of the model that teaches (Eq. 6); None: no distillation.
        published_teacher: its groups as the published training has them.
        whole, group, own, temperature, weighing: see `tdnet.training.losses.Distillation`.
        auxiliary: weight of the cross entropy of a head on the third stage of the backbones.
        temporal: weight of the consistency of the last two frames (`tdnet.training.temporal`),
            whose flow is estimated: windows are a frame longer.
    """

    hard_pixels: bool = False
    teacher: str | None = None
    published_teacher: bool = False
    whole: float = PAPER.whole
    group: float = PAPER.group
    own: float = PAPER.own
    temperature: float = PAPER.temperature
    weighing: str = PAPER.weighing
    auxiliary: float = 0.0
    temporal: float = 0.0


@dataclass
class TrainingConfig:
    """A whole training.

    Attributes:
        steps: of the optimizer.
        batch_size: windows a step, of all processes together, with gradient accumulation too.
        accumulation: parts of a step's batch that go through the model one after the other.
        precision: "float32", or "bfloat16" or "float16" by torch.autocast.
        device: of torch; None: CUDA where there is any.
        seed: of all that is random.
        save_every: steps after which the state is written, from which a training goes on.
        validate_every: steps after which the model is evaluated.
    """

    model: ModelOptions = field(default_factory=ModelOptions)
    data: DataOptions = field(default_factory=DataOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    loss: LossOptions = field(default_factory=LossOptions)
    steps: int = 80_000
    batch_size: int = 8
    accumulation: int = 1
    precision: str = "float32"
    device: str | None = None
    seed: int = 0
    save_every: int = 500
    validate_every: int = 5000


def load_config(path: Path | str, settings: Sequence[str] = ()) -> TrainingConfig:
    """The config of a YAML file.

    Args:
        path: of the file.
        settings: "key=value", such as "data.root=/data/camvid", which replace those of the file.

    Raises:
        ValueError: no such file, no YAML, an unknown key, or a value that is missing or impossible.
    """
    config = read_yaml(TrainingConfig, "config", path, settings)
    _check(config)
    return config


def read_yaml(schema: type[T], what: str, path: Path | str, settings: Sequence[str] = ()) -> T:
    """The dataclass that a YAML file holds, with settings in place of some of its values.

    Args:
        schema: its type.
        what: what a message calls the file.
        path, settings: see `load_config`.

    Raises:
        ValueError: no such file, no YAML, an unknown key, or a value that is missing or has
            another type.
    """
    configs, yaml = _omegaconf(), extra_package("yaml", "a config")
    errors = extra_package("omegaconf.errors", "a config")
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{what}: expected a YAML file, got {str(path)!r}: there is no such file")
    for setting in settings:
        if "=" not in setting:
            raise ValueError(f"set: expected key=value, got {setting!r}")
    try:
        merged = configs.merge(
            configs.structured(schema),
            configs.load(path),
            configs.from_dotlist(list(settings)),
        )
        missing = sorted(configs.missing_keys(merged))
        found: Any = None if missing else configs.to_object(merged)
    except (
        *(errors.OmegaConfBaseException, yaml.YAMLError),
        *(UnicodeDecodeError, TypeError),
    ) as error:
        raise ValueError(f"{path}: {_reason(error)}") from error
    if missing:
        raise ValueError(f"{missing[0]}: expected a value in {path} or by --set, got none")
    return cast(T, found)


def as_yaml(config: TrainingConfig) -> str:
    """What `load_config` reads again."""
    configs = _omegaconf()
    text: str = configs.to_yaml(configs.structured(config))
    return text


def _omegaconf() -> Any:
    return extra_package("omegaconf", "a config").OmegaConf


def _reason(error: Exception) -> str:
    """OmegaConf's first line, with the name of the key whole."""
    line = printable((str(error).splitlines() or [""])[0], 200)
    key = getattr(error, "full_key", None)
    return f"{key}: {line}" if key else line


def _check(config: TrainingConfig) -> None:
    model, data, optimizer = config.model, config.data, config.optimizer
    for name, value, least in (
        ("steps", config.steps, 1),
        ("batch_size", config.batch_size, 1),
        ("accumulation", config.accumulation, 1),
        ("seed", config.seed, 0),
        ("save_every", config.save_every, 1),
        ("validate_every", config.validate_every, 1),
        ("data.step", data.step, 1),
        ("data.workers", data.workers, 0),
        ("optimizer.warm_up", optimizer.warm_up, 0),
    ):
        if value < least:
            raise ValueError(f"{name}: expected at least {least}, got {value}")
    if config.batch_size % config.accumulation:
        raise ValueError(
            f"accumulation: expected a divisor of batch_size {config.batch_size}, "
            f"got {config.accumulation}"
        )
    if len(data.crop) != 2 or min(data.crop) < 1:
        raise ValueError(f"data.crop: expected [height, width], got {data.crop}")
    if len(data.scale) != 2 or not 0 < data.scale[0] <= data.scale[1]:
        raise ValueError(f"data.scale: expected [least, largest], got {data.scale}")
    for name, share in (("data.jitter", data.jitter), ("data.motion_share", data.motion_share)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name}: expected a number from 0 to 1, got {share}")
    if optimizer.average is not None and not 0 < optimizer.average < 1:
        raise ValueError(
            f"optimizer.average: expected a number between 0 and 1, got {optimizer.average}"
        )
    for name, word, known in (
        ("precision", config.precision, ("float32", "bfloat16", "float16")),
        ("loss.weighing", config.loss.weighing, get_args(Weighing)),
    ):
        if word not in known:
            raise ValueError(f"{name}: expected one of {', '.join(known)}, got {word!r}")
    if model.checkpoint is not None and (model.path_checkpoints or model.backbone_weights):
        raise ValueError(
            "model: expected one start, got checkpoint and path_checkpoints or backbone_weights"
        )
