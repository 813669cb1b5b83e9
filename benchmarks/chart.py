"""The README's chart from a CSV of the benchmark suite: how many times longer each peer takes.

    python benchmarks/chart.py benchmarks/results/attention_propagate_cpu.csv docs/attention.png

Needs matplotlib. One case is drawn, by default the first; the ratios are those "by round".
"""

import argparse
import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

Row = dict[str, str]


def rows_of_case(path: Path, case: str | None) -> list[Row]:
    """Ours and the timed peers of one case, the quickest first.

    Raises:
        SystemExit: the file holds no such case, or ours was not timed in it.
    """
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["status"] == "timed"]
    ours = [row for row in rows if row["role"] == "ours" and case in (None, row["case"])]
    if not ours:
        raise SystemExit(f"{path}: expected a timed case {case or ''}".rstrip())
    peers = [row for row in rows if row["role"] == "peer" and row["peer"] != "reference"]
    same = [row for row in peers if _case(row) == _case(ours[0])]
    return sorted([ours[0], *same], key=_ratio)


def draw(rows: list[Row], picture: Path) -> None:
    """A bar a row, ours in colour, and below what the numbers depend on."""
    (ours,) = (row for row in rows if row["role"] == "ours")
    figure, axes = pyplot.subplots(figsize=(8, 0.45 * len(rows) + 1.3), layout="constrained")
    names = ["tdnet_ops" if row is ours else row["peer"] for row in rows]
    colors = ["C0" if row is ours else "lightgrey" for row in rows]
    bars = axes.barh(names, [_ratio(row) for row in rows], color=colors)
    labels = [
        f"{float(row['median_ms']):.0f} ms" if row is ours else f"{_ratio(row):.2f}x"
        for row in rows
    ]
    axes.bar_label(bars, labels, padding=4)
    axes.invert_yaxis()
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.tick_params(left=False, bottom=False, labelbottom=False)
    axes.set_title(f"{ours['operator']} {ours['case']}: time, shorter is better", loc="left")
    figure.supxlabel(
        f"{ours['shapes']}; {ours['dtype']}, {ours['layout']}\n"
        f"{ours['cpu']}, {ours['threads']} threads, torch {ours['torch']}",
        fontsize=8,
        color="dimgrey",
    )
    figure.savefig(picture, dpi=120)


def _case(row: Row) -> tuple[str, str]:
    return row["operator"], row["case"]


def _ratio(row: Row) -> float:
    return 1.0 if row["role"] == "ours" else float(row["ratio_of_rounds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("csv", type=Path, help="as python -m tdnet_ops.bench --csv writes it")
    parser.add_argument("picture", type=Path, help="the PNG to write")
    parser.add_argument("--case", help="such as psp-769x1537")
    arguments = parser.parse_args()
    draw(rows_of_case(arguments.csv, arguments.case), arguments.picture)


if __name__ == "__main__":
    main()
