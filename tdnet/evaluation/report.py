"""Results of models side by side: a table in Markdown, and a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from tdnet.architectures import MODELS
from tdnet.evaluation.metrics import Difference, Interval, miou_difference, training_difference
from tdnet.evaluation.results import Evaluation, Latency, have_same_truth, pooled
from tdnet.extras import extra_package

_NONE = "-"


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        name: what it is called.
        results: of each training of a model, in the order of their seeds; most often of one.
        curve: of the plot of mIoU over places; a row is compared with the first of its curve.
        place: on that curve; None: on none.
        told: further cells, by the heads of their columns.
    """

    name: str
    results: tuple[Evaluation, ...]
    curve: str = ""
    place: str | None = None
    told: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def result(self) -> Evaluation:
        """Of all trainings together.

        Raises:
            ValueError: see `pooled`.
        """
        try:
            return pooled(self.results)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error


def read_results(paths: Sequence[Path]) -> list[Row]:
    """A row a path, by its name: a file, or a folder of the results of several trainings.

    Raises:
        ValueError: a file is no result, a folder has none, or two paths have one name.
        OSError: a file cannot be read.
    """
    found: dict[str, Row] = {}
    for path in paths:
        name = path.name if path.is_dir() else path.stem
        if name in found:
            raise ValueError(f"{path}: expected another name for each file, got {name} twice")
        files = sorted(path.glob("*.json")) if path.is_dir() else [path]
        if not files:
            raise ValueError(f"{path}: expected results of tdnet eval, got a folder without")
        found[name] = Row(name, tuple(map(read_result, files)))
    return list(found.values())


def read_result(path: Path) -> Evaluation:
    """Raises:
    ValueError: the file is no result.
    OSError: it cannot be read.
    """
    try:
        return Evaluation.from_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def write_report(rows: Sequence[Row], folder: Path, about: str = "") -> list[Path]:
    """Write results.md and results.png into a folder, which is made, and return their paths.

    Args:
        about: what stands above the table.

    Raises:
        ValueError: the results of a row do not go together.
        ImportError: matplotlib is not installed; there is a table then.
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table, plot = folder / "results.md", folder / "results.png"
    text = (f"{about.strip()}\n\n" if about else "") + markdown(rows)
    table.write_text(text, encoding="utf-8")
    write_plot(rows, plot)
    table.write_text(f"{text}\n![mIoU]({plot.name})\n", encoding="utf-8")
    return [table, plot]


def markdown(rows: Sequence[Row]) -> str:
    """A table, and what its columns say.

    mIoU is compared with that of the first row (of the curve, where there are several), frame by
    frame, where the same data was scored: as many frames, and in each as many pixels of each true
    class; and training by training, where there are as many.
    """
    firsts = _firsts(rows)
    cells = [_cells(row, firsts[row.curve]) for row in rows]
    heads = list(dict.fromkeys(head for row in cells for head in row))
    lines = [_line(heads), _line(["---"] * len(heads))]
    lines += [_line([row.get(head, _NONE) for head in heads]) for row in cells]
    legend = [_LEGEND]
    if any(len(row.results) > 1 for row in rows):
        legend.append(_LEGEND_OF_TRAININGS)
    if len(firsts) > 1:
        compared = "; ".join(row.name for row in firsts.values())
        legend.append(f"Each row is compared with the first of its kind: {compared}.")
    return "\n".join(lines) + "\n\n" + " ".join(legend) + "\n"


def _firsts(rows: Sequence[Row]) -> dict[str, Row]:
    """The first row of each curve."""
    firsts: dict[str, Row] = {}
    for row in rows:
        firsts.setdefault(row.curve, row)
    return firsts


_LEGEND = (
    "In percent; in brackets where the number lies with 95% (blocks of frames drawn again), not "
    "what another training would give. Means over the orders of the paths. TC: class IoU of labels "
    "and the next frame's carried back by DIS optical flow; seen: without what the flow loses. VC: "
    "share of pixels that keep their label over 8 or 16 frames, of those whose true label stays; "
    "in brackets keep the right one. Frames scored; in brackets those with a full past, others are "
    "labelled from fewer frames."
)
_LEGEND_OF_TRAININGS = (
    "Of several trainings the means, and the mIoU of each; the difference over trainings is that "
    "of pairs of one seed, in brackets where that of ever more of them lies with 95% (Student's t)."
)


def _cells(row: Row, first: Row) -> dict[str, str]:
    """By the heads of their columns."""
    result = row.result
    vc = {f"VC{s.window}": _steadiness(s.steady, s.steady_and_right) for s in result.vc}
    return {
        "": row.name,
        "data": result.data,
        "mIoU": f"{_percent(result.miou)} {_interval(result.miou_interval)}",
        "against the first": _difference(first, row),
        **(_cells_of_trainings(row, first) if len(row.results) > 1 else {}),
        **row.told,
        "mean accuracy": _percent(result.mean_accuracy),
        "TC (DIS)": _percent(result.tc),
        "TC, seen": _percent(result.tc_seen),
        **vc,
        "mean / p95 / max ms": _milliseconds(result.latency),
        "frames": _scored(result, "{} ({})"),
        "backend": result.backend,
    }


def _cells_of_trainings(row: Row, first: Row) -> dict[str, str]:
    difference = _NONE
    as_many = len(row.results) == len(first.results)
    if row is not first and as_many and have_same_truth(first.result, row.result):
        mious = [[result.miou for result in other.results] for other in (first, row)]
        difference = _signed(training_difference(*mious))
    return {
        "over trainings": difference,
        "of each": ", ".join(_percent(result.miou) for result in row.results),
    }


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
        ("frames scored", _scored(result, "{}, of which {} had a full past")),
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


def _scored(result: Evaluation, form: str) -> str:
    settled = result.settled_frames
    return str(result.frames) if settled is None else form.format(result.frames, settled)


def class_rows(result: Evaluation) -> list[tuple[str, str]]:
    """Each class and its IoU in percent."""
    return list(zip(result.class_names, map(_percent, result.class_iou), strict=True))


def write_plot(rows: Sequence[Row], path: Path) -> None:
    """mIoU over latency, and mIoU over TC, as PNG; results without them have no place in it.

    Where rows have places, mIoU over places is the first of its panels; of several curves the
    others show the first rows alone.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    extra_package("matplotlib", "a plot").use("Agg")
    pyplot = extra_package("matplotlib.pyplot", "a plot")
    placed = [row for row in rows if row.place is not None]
    count = 3 if placed else 2
    figure, axes = pyplot.subplots(
        1, count, figsize=(4.5 * count, 4), sharey=True, layout="constrained"
    )
    firsts = list(_firsts(rows).values())
    for row in rows if len(firsts) == 1 else firsts:
        result = row.result
        if result.latency is not None:
            _draw(axes[-2], result.latency.mean_ms, row)
        if result.tc is not None:
            _draw(axes[-1], 100 * result.tc, row)
    for panel, label in zip(axes[-2:], ("latency, mean ms", "TC (DIS), %"), strict=True):
        panel.set_xlabel(label)
        panel.margins(x=0.2)
    if placed:
        _draw_curves(axes[0], placed)
    for panel in axes:
        panel.grid(alpha=0.3)
    axes[0].set_ylabel("mIoU, %")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _draw(panel: Any, value: float, row: Row) -> None:
    _draw_points(panel, [value], [row], fmt="o")
    panel.annotate(row.name, (value, 100 * row.result.miou), (6, 6), textcoords="offset points")


def _draw_curves(panel: Any, rows: Sequence[Row]) -> None:
    """A curve over the names of the places."""
    curves = list(dict.fromkeys(row.curve for row in rows))
    for curve in curves:
        of_curve = [row for row in rows if row.curve == curve]
        _draw_points(panel, [row.place for row in of_curve], of_curve, fmt="o-", label=curve)
    if len(curves) > 1:
        panel.legend()


def _draw_points(panel: Any, places: Sequence[Any], rows: Sequence[Row], **style: Any) -> None:
    """mIoU over places, with its interval."""
    results = [row.result for row in rows]
    below = [100 * max(result.miou - result.miou_interval.low, 0) for result in results]
    above = [100 * max(result.miou_interval.high - result.miou, 0) for result in results]
    mious = [100 * result.miou for result in results]
    panel.errorbar(places, mious, yerr=[below, above], capsize=3, **style)


def _difference(first: Row, row: Row) -> str:
    if row is first or not have_same_truth(first.result, row.result):
        return _NONE
    return _signed(miou_difference(first.result.confusions, row.result.confusions))


def _signed(difference: Difference) -> str:
    low, high = difference.interval.low, difference.interval.high
    return f"{100 * difference.miou:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


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
