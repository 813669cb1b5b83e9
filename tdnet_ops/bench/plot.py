"""The roofline plot."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from tdnet_ops.bench import roofs
from tdnet_ops.bench.engines import load
from tdnet_ops.bench.report import digits, whole_file
from tdnet_ops.bench.suite import Row

_MARKERS = "osD^vPX*<>"
_PEER_MARKERS = "x+^vsDph<>|_12*8"
# Where a number may stand beside its point, and how far from others, in typographic points.
_SIDES = ((0, 9), (0, -9), (9, 0), (-9, 0), (8, 8), (-8, -8), (8, -8), (-8, 8), (0, 18), (0, -18))
_CLEARANCE = 10


def load_pyplot() -> ModuleType:
    """matplotlib.pyplot, drawing into files only.

    Raises:
        Refusal: matplotlib is not installed.
    """
    load("matplotlib").use("Agg")
    return load("matplotlib.pyplot")


def write_roofline(path: Path, rows: Sequence[Row], stamped: Mapping[str, str]) -> None:
    """Ours as one numbered point a case, GFLOP/s over operations a compulsory byte, as PNG.

    Peers are small grey marks above and below. The roofs are the medians of the rates measured
    beside the cases. Cases without operations (subsampling) have no place in it.

    Raises:
        Refusal: matplotlib is not installed.
        OSError: the folder cannot be written.
    """
    pyplot = load_pyplot()
    points = [row for row in rows if row.role == "ours" and row.gflops and row.operations]
    figure, (axes, key) = pyplot.subplots(
        1, 2, figsize=(13, 6.5), width_ratios=(3, 2), layout="constrained"
    )
    _draw_roofs(axes, rows, [_intensity(row) for row in points])
    marks = [row for row in rows if row.role == "peer" and row.gflops and row.operations]
    peers = _draw_peers(axes, marks)
    handles = _draw_points(axes, points)
    labels = [
        f"{number}  {row.operator} {row.case}: {digits(row.gflops)}"
        for number, row in enumerate(points, 1)
    ]
    key.axis("off")
    key.legend(
        handles, labels, title="GFLOP/s", loc="upper left", frameon=False, fontsize=9
    ).set_alignment("left")
    if peers:
        names = {"handles": list(peers.values()), "labels": list(peers)}
        figure.legend(**names, loc="outside lower left", ncols=9, frameon=False, fontsize=9)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="arithmetic intensity (FLOP/byte)",
        ylabel="GFLOP/s",
        title=f"{_machine(stamped)}, {stamped['dtype']}, {stamped['layout']}, {stamped['pass']}",
    )
    axes.grid(which="both", alpha=0.2)
    figure.draw_without_rendering()  # Settles where points lie, in pixels.
    _number_points(axes, points, marks)
    with whole_file(path) as part:
        figure.savefig(part, format="png", dpi=120)
    pyplot.close(figure)


def _machine(stamped: Mapping[str, str]) -> str:
    if stamped["device"] != "cpu":
        return stamped["device"]
    return f"{stamped['cpu']}, {stamped['instruction_set']}, {stamped['threads']} threads"


def _intensity(row: Row) -> float:
    assert row.operations is not None
    assert row.moved_bytes is not None
    return row.operations / row.moved_bytes


def _draw_roofs(axes: Any, rows: Sequence[Row], intensities: Sequence[float]) -> None:
    """The memory slope and the plateau of the peak over the range of the points, and torch.mm."""
    peak, mm = (_median(rows, name, "gflops") for name in (roofs.PEAK, roofs.MM))
    copy = _median(rows, roofs.COPY, "gbps")
    assert peak is not None
    assert copy is not None
    corner = peak / copy
    left = min([corner / 4, *(x / 2 for x in intensities)])
    right = max([corner * 4, *(x * 2 for x in intensities)])
    axes.plot([left, corner, right], [left * copy, peak, peak], color="black", linewidth=1.2)
    axes.annotate(f"peak {digits(peak)} GFLOP/s", (corner, peak), va="bottom", fontsize=9)
    if mm is not None:
        axes.plot([mm / copy, right], [mm, mm], color="grey", linewidth=0.8, linestyle="--")
        axes.annotate(
            f"torch.mm {digits(mm)}", (right, mm), ha="right", va="top", fontsize=8, color="grey"
        )
    axes.annotate(
        f"copy {digits(copy)} GB/s",
        (left, left * copy),
        xytext=(6, -2),
        textcoords="offset points",
        va="top",
        fontsize=9,
    )


def _median(rows: Sequence[Row], peer: str, rate: str) -> float | None:
    """Of a rate over all cases; None where it was not measured."""
    rates = [getattr(row, rate) for row in rows if row.peer == peer and getattr(row, rate)]
    return statistics.median(rates) if rates else None


def _draw_peers(axes: Any, marks: Sequence[Row]) -> dict[str, Any]:
    """One marker a peer, each at its cases' intensities; their handles by name."""
    handles = {}
    for which, name in enumerate(dict.fromkeys(row.peer for row in marks)):
        own = [row for row in marks if row.peer == name]
        (handles[name],) = axes.plot(
            [_intensity(row) for row in own],
            [row.gflops for row in own],
            linestyle="",
            marker=_PEER_MARKERS[which % len(_PEER_MARKERS)],
            markersize=4,
            color="grey",
            markerfacecolor="none",
            alpha=0.8,
        )
    return handles


def _draw_points(axes: Any, points: Sequence[Row]) -> list[Any]:
    """One colour and marker an operator."""
    operators = list(dict.fromkeys(row.operator for row in points))
    handles = []
    for row in points:
        which = operators.index(row.operator)
        style = {"marker": _MARKERS[which % len(_MARKERS)], "color": f"C{which}"}
        handles += axes.plot(_intensity(row), row.gflops, linestyle="", alpha=0.8, **style)
    return handles


def _number_points(axes: Any, points: Sequence[Row], marks: Sequence[Row]) -> None:
    """Writes each point's number beside it, clear of points, marks and numbers where it can."""
    pixels = axes.figure.dpi / 72
    taken = [axes.transData.transform((_intensity(row), row.gflops)) for row in [*points, *marks]]
    for number, row in enumerate(points, 1):
        others = [*taken[: number - 1], *taken[number:]]
        places = {
            (right, up): taken[number - 1] + (right * pixels, up * pixels) for right, up in _SIDES
        }
        room = {
            side: min((math.dist(place, other) for other in others), default=math.inf)
            for side, place in places.items()
        }
        clear = [side for side in _SIDES if room[side] > _CLEARANCE * pixels]
        side = clear[0] if clear else max(_SIDES, key=room.__getitem__)
        taken.append(places[side])
        axes.annotate(
            str(number),
            (_intensity(row), row.gflops),
            xytext=side,
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=8,
        )
