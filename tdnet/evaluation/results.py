"""What was measured of a model, and its file."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tdnet.architectures import ModelConfig, Size
from tdnet.evaluation.metrics import Interval, miou_interval

_FORMAT = "tdnet-evaluation-1"


@dataclass(frozen=True)
class Latency:
    """Milliseconds from a frame to its labels, of frames that had a full past."""

    mean_ms: float
    p95_ms: float
    max_ms: float
    frames: int


@dataclass(frozen=True)
class SteadyShare:
    """VC of windows of `window` frames; None where there were no such windows.

    See `tdnet.evaluation.consistency.VideoConsistency`.
    """

    window: int
    windows: int
    steady: float | None
    steady_and_right: float | None


@dataclass(frozen=True)
class Evaluation:
    """Shares are 0 to 1, and means over the orders of the paths.

    Attributes:
        model: name of its row in MODELS.
        data: what the videos are called.
        class_names: K names.
        size: (height, width) of the network's input; None for that of the frames.
        gap: the network saw every gap-th frame.
        frames: how many were scored.
        miou: over the classes that occur in the truth.
        miou_interval: where it lies with 95%, by bootstrap over blocks of frames.
        miou_of_orders: of each order of the paths.
        mean_accuracy: mean over the classes of the share of their pixels that is right.
        pixel_accuracy: the share of pixels that is right.
        class_iou: of each class; None if the truth does not have it.
        tc: TC (DIS); None without clips that are labelled densely.
        tc_seen: the same of what the flow sees in both frames.
        vc: VC8 and VC16.
        latency: None without frames that had a full past.
        backend: what ran it.
        confusions: of each order and each scored frame in the order of the videos,
            int32 `[orders, frames, K, K]`: what `miou_difference` of two models needs.
        config: of the model. None in older files, as what follows.
        surviving_paths: how many frames labels are made of: m, or what `TDNet.surviving_paths` was.
        settled_frames: how many of the scored frames had a full past: as many frames before them in
            their stream as their labels are made of. Labels of the others come from V_t alone.
    """

    model: str
    data: str
    class_names: tuple[str, ...]
    size: Size | None
    gap: int
    frames: int
    miou: float
    miou_interval: Interval
    miou_of_orders: tuple[float, ...]
    mean_accuracy: float
    pixel_accuracy: float
    class_iou: tuple[float | None, ...]
    tc: float | None
    tc_seen: float | None
    vc: tuple[SteadyShare, ...]
    latency: Latency | None
    backend: str
    confusions: NDArray[np.int32] = field(repr=False, compare=False)
    config: ModelConfig | None = None
    surviving_paths: int | None = None
    settled_frames: int | None = None

    def to_json(self) -> str:
        """Text that a person can read, but for the confusion matrices: compressed, as base64."""
        told = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "confusions"}
        packed = zlib.compress(self.confusions.astype("<i4").tobytes(), 9)
        told["confusions"] = {
            "shape": self.confusions.shape,
            "zlib": base64.b64encode(packed).decode(),
        }
        return json.dumps({"format": _FORMAT, **told}, indent=1, default=asdict) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Evaluation:
        """What `to_json` made.

        Raises:
            ValueError: it is something else.
        """
        try:
            told = json.loads(text)
            if told.pop("format") != _FORMAT:
                raise ValueError(f"format: expected {_FORMAT!r}, got another")
            return cls(**_typed(told))
        except (TypeError, LookupError, AttributeError, ValueError, zlib.error) as error:
            raise ValueError(f"expected a result of tdnet eval, got something else: {error}") from (
                error
            )


def have_same_truth(first: Evaluation, second: Evaluation) -> bool:
    """Whether data has the same name, and each frame as many pixels of each true class."""
    truths = [result.confusions[0].sum(-1) for result in (first, second)]
    names = [(result.data, result.class_names) for result in (first, second)]
    return names[0] == names[1] and np.array_equal(*truths)


def pooled(results: Sequence[Evaluation]) -> Evaluation:
    """Several trainings of one model as one result: means, as over more orders of the paths.

    Raises:
        ValueError: they are not of one model, measured alike on the same frames.
    """
    first = results[0]
    if len(results) == 1:
        return first
    for other in results[1:]:
        for name in ("model", "size", "gap", "config", "surviving_paths"):
            wanted, found = getattr(first, name), getattr(other, name)
            if wanted != found:
                raise ValueError(f"results: expected {name} {wanted} in all, got {found}")
        if not have_same_truth(first, other):
            raise ValueError(f"results: expected the frames of {first.data}, got others")
    confusions = np.concatenate([result.confusions for result in results])
    return replace(
        first,
        miou=_mean([result.miou for result in results]),
        miou_interval=miou_interval(confusions),
        miou_of_orders=tuple(miou for result in results for miou in result.miou_of_orders),
        mean_accuracy=_mean([result.mean_accuracy for result in results]),
        pixel_accuracy=_mean([result.pixel_accuracy for result in results]),
        class_iou=tuple(
            _mean(same) for same in zip(*(result.class_iou for result in results), strict=True)
        ),
        tc=_mean([result.tc for result in results]),
        tc_seen=_mean([result.tc_seen for result in results]),
        vc=tuple(
            replace(
                same[0],
                steady=_mean([share.steady for share in same]),
                steady_and_right=_mean([share.steady_and_right for share in same]),
            )
            for same in zip(*(result.vc for result in results), strict=True)
        ),
        latency=_pooled_latency([result.latency for result in results]),
        backend=", ".join(dict.fromkeys(result.backend for result in results)),
        confusions=confusions,
    )


def _mean(values: Sequence[float | None]) -> Any:
    """None where one is."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def _pooled_latency(latencies: Sequence[Latency | None]) -> Latency | None:
    known = [latency for latency in latencies if latency is not None]
    if len(known) < len(latencies):
        return None
    return Latency(
        mean_ms=_mean([latency.mean_ms for latency in known]),
        p95_ms=_mean([latency.p95_ms for latency in known]),
        max_ms=max(latency.max_ms for latency in known),
        frames=sum(latency.frames for latency in known),
    )


def _typed(told: dict[str, Any]) -> dict[str, Any]:
    """Tuples and types in place of the lists and dicts of JSON."""
    packed = zlib.decompress(base64.b64decode(told["confusions"]["zlib"], validate=True))
    confusions = np.frombuffer(packed, "<i4").reshape(told["confusions"]["shape"])
    tuples = ("class_names", "miou_of_orders", "class_iou")
    return {
        **told,
        **{name: tuple(told[name]) for name in tuples},
        "size": None if told["size"] is None else tuple(told["size"]),
        "miou_interval": Interval(**told["miou_interval"]),
        "vc": tuple(SteadyShare(**share) for share in told["vc"]),
        "latency": None if told["latency"] is None else Latency(**told["latency"]),
        "confusions": confusions,
        "config": None if told.get("config") is None else _config(told["config"]),
    }


def _config(told: dict[str, Any]) -> ModelConfig:
    """Not by `ModelConfig.from_json`: a model of somebody else need not have a row in MODELS."""
    return ModelConfig(**{**told, "norm_size": tuple(told["norm_size"])})
