"""Results of models side by side: a table in Markdown, and a plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from tdnet.architectures import MODELS
from tdnet.evaluation.metrics import Interval, miou_difference
from tdnet.evaluation.results import Evaluation, Latency
from tdnet.extras import extra_package

Named = tuple[str, Evaluation]

_NONE = "-"


def read_results(paths: Sequence[Path]) -> list[Named]:
    """Results by the names of their files.

    Raises:
        ValueError: a file is no result, or two have one name.
        OSError: a file cannot be read.
    """
    found: dict[str, Evaluation] = {}
    for path in paths:
        if path.stem in found:
            raise ValueError(f"{path}: expected another name for each file, got {path.stem} twice")
        try:
            found[path.stem] = Evaluation.from_json(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return list(found.items())


def write_report(results: Sequence[Named], folder: Path) -> list[Path]:
    """Write results.md and results.png into a folder, which is made, and return their paths.

    Raises:
        ImportError: matplotlib is not installed; there is a table then.
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table, plot = folder / "results.md", folder / "results.png"
    text = markdown(results)
    table.write_text(text, encoding="utf-8")
    write_plot(results, plot)
    table.write_text(f"{text}\n![mIoU]({plot.name})\n", encoding="utf-8")
    return [table, plot]


def markdown(results: Sequence[Named]) -> str:
    """A table, a row a result, and what its columns say.

    mIoU is compared with the first row's, frame by frame, where the same data was scored: as many
    frames, and in each as many pixels of each true class.
    """
    lines = [_line(_HEADS), _line(["---"] * len(_HEADS))]
    lines += [_line(_cells(name, result, results[0][1])) for name, result in results]
    return "\n".join(lines) + "\n\n" + _LEGEND + "\n"


_HEADS = (
    "",
    "data",
    "mIoU",
    "against the first",
    "mean accuracy",
    "TC (DIS)",
    "TC, seen",
    "VC8",
    "VC16",
    "mean / p95 / max ms",
    "backend",
)

_LEGEND = (
    "In percent; in brackets where the number lies with 95% (blocks of frames drawn again), not "
    "what another training would give. Means over the orders of the paths. TC: class IoU of labels "
    "and the next frame's carried back by DIS optical flow; seen: without what the flow loses. VC: "
    "share of pixels that keep their label over 8 or 16 frames, of those whose true label stays; "
    "in brackets keep the right one."
)


def _cells(name: str, result: Evaluation, first: Evaluation) -> list[str]:
    return [
        name,
        result.data,
        f"{_percent(result.miou)} {_interval(result.miou_interval)}",
        _difference(first, result),
        _percent(result.mean_accuracy),
        _percent(result.tc),
        _percent(result.tc_seen),
        *(_steadiness(share.steady, share.steady_and_right) for share in result.vc),
        _milliseconds(result.latency),
        result.backend,
    ]


def summary_rows(result: Evaluation) -> list[tuple[str, str]]:
    """What was measured and the numbers, for people."""
    size = "as the frames" if result.size is None else f"{result.size[0]}x{result.size[1]}"
    rows = [
        ("mIoU", f"{_percent(result.miou)} {_interval(result.miou_interval)}"),
        ("mIoU of each order", ", ".join(map(_percent, result.miou_of_orders))),
        ("mean accuracy", _percent(result.mean_accuracy)),
        ("pixel accuracy", _percent(result.pixel_accuracy)),
        ("TC (DIS)", _percent(result.tc)),
        ("TC (DIS), seen in both frames", _percent(result.tc_seen)),
    ]
    for share in result.vc:
        shown = _steadiness(share.steady, share.steady_and_right)
        rows.append((f"VC{share.window} (and right)", shown))
    if differences := _differences_from_row(result):
        rows.append(("built with", ", ".join(differences)))
    return [
        *rows,
        ("latency, mean / p95 / max", f"{_milliseconds(result.latency)} ms"),
        ("frames scored", _scored(result)),
        ("network input", f"{size}, every {result.gap}. frame" if result.gap > 1 else size),
        ("backend", result.backend),
    ]


def _differences_from_row(result: Evaluation) -> list[str]:
    """What the model has that the row of its name in MODELS has not; classes are shown anyway."""
    config = result.config
    if config is None:
        return []
    default = MODELS.get(config.name, config)
    differences = {
        field.name: getattr(config, field.name)
        for field in fields(config)
        if field.name != "num_classes"
        and getattr(config, field.name) != getattr(default, field.name)
    }
    if result.surviving_paths != config.num_paths:
        differences["surviving_paths"] = result.surviving_paths
    return [f"{name}={value!r}" for name, value in differences.items()]


def _scored(result: Evaluation) -> str:
    settled = result.settled_frames
    shown = str(result.frames)
    return shown if settled is None else f"{shown}, of which {settled} had a full past"


def class_rows(result: Evaluation) -> list[tuple[str, str]]:
    """Each class and its IoU in percent."""
    return list(zip(result.class_names, map(_percent, result.class_iou), strict=True))


def write_plot(results: Sequence[Named], path: Path) -> None:
    """mIoU over latency, and mIoU over TC, as PNG; results without them have no place in it.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    extra_package("matplotlib", "a plot").use("Agg")
    pyplot = extra_package("matplotlib.pyplot", "a plot")
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 4), sharey=True, layout="constrained")
    for name, result in results:
        if result.latency is not None:
            _draw(axes[0], result.latency.mean_ms, result, name)
        if result.tc is not None:
            _draw(axes[1], 100 * result.tc, result, name)
    for panel, label in zip(axes, ("latency, mean ms", "TC (DIS), %"), strict=True):
        panel.set_xlabel(label)
        panel.grid(alpha=0.3)
        panel.margins(x=0.2)
    axes[0].set_ylabel("mIoU, %")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _draw(panel: Any, value: float, result: Evaluation, name: str) -> None:
    interval = result.miou_interval
    ends = (result.miou - interval.low, interval.high - result.miou)
    error = [[100 * max(end, 0)] for end in ends]
    panel.errorbar(value, 100 * result.miou, yerr=error, fmt="o", capsize=3)
    panel.annotate(name, (value, 100 * result.miou), (6, 6), textcoords="offset points")


def _difference(first: Evaluation, result: Evaluation) -> str:
    if result is first or not _have_same_truth(first, result):
        return _NONE
    found = miou_difference(first.confusions, result.confusions)
    interval = found.interval
    return f"{100 * found.miou:+.1f} [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"


def _have_same_truth(first: Evaluation, second: Evaluation) -> bool:
    """Whether data has the same name, and each frame as many pixels of each true class."""
    truths = [result.confusions[0].sum(-1) for result in (first, second)]
    names = [(result.data, result.class_names) for result in (first, second)]
    return names[0] == names[1] and np.array_equal(*truths)


def _percent(share: float | None) -> str:
    return _NONE if share is None else f"{100 * share:.1f}"


def _interval(interval: Interval) -> str:
    return f"[{_percent(interval.low)}, {_percent(interval.high)}]"


def _steadiness(steady: float | None, right: float | None) -> str:
    return _NONE if steady is None else f"{_percent(steady)} ({_percent(right)})"


def _milliseconds(latency: Latency | None) -> str:
    if latency is None:
        return _NONE
    return f"{latency.mean_ms:.1f} / {latency.p95_ms:.1f} / {latency.max_ms:.1f}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
