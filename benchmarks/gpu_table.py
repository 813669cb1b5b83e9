"""A short table from the CSV files of gpu_oneshot.sh: `python gpu_table.py FOLDER`.

A line an operator and case: our time, the share of the measured rates, the best peer beside it. A
line a stream. Files that are not there yet are left out.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

Row = dict[str, str]


def _rows(path: Path) -> list[Row]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _best_peer(rows: list[Row], ours: Row) -> str:
    """The fastest of the others at the same case, and how many times longer it takes."""
    others = [
        row
        for row in rows
        if row["role"] == "peer" and row["status"] == "timed" and _case(row) == _case(ours)
    ]
    if not others:
        return "-"
    best = min(others, key=lambda row: float(row["median_ms"]))
    return f"{best['peer']} {float(best['ratio']):.3g}x"


def _case(row: Row) -> str:
    return f"{row['operator']} {row['case']}"


def _shares(row: Row) -> str:
    """Whatever shares of measured rates the suite gives, in percent."""
    found = [
        f"{name.removeprefix('percent_')} {float(value):.0f}%"
        for name, value in row.items()
        if name.startswith("percent_") and value
    ]
    return ", ".join(found)


def operators(folder: Path) -> list[str]:
    lines = []
    for path in sorted(folder.glob("bench_*.csv")):
        rows = _rows(path)
        for ours in (row for row in rows if row["role"] == "ours"):
            what = f"{_case(ours):44} {path.stem.removeprefix('bench_'):9}"
            if ours["status"] == "timed":
                peer = _best_peer(rows, ours)
                time = float(ours["median_ms"])
                lines.append(f"{what} {ours['peer']:7} {time:9.4f}  {peer:24} {_shares(ours)}")
            else:
                lines.append(f"{what} {ours['peer']:7} {ours['status']}: {ours['note']}")
    heading = (
        f"{'operator and case':44} {'dtype':9} {'ours':7} {'ms':>9}  {'best peer':24} share of"
    )
    return [heading, *lines] if lines else []


def streams(folder: Path) -> list[str]:
    lines = [
        f"{row['model'] + ', ' + row['form']:20} {row['size']:10} {row['dtype']:9} "
        f"{float(row['mean_ms']):9.2f} {float(row['p95_ms']):9.2f} {float(row['max_ms']):9.2f}"
        f"  {row['note']}"
        for row in _rows(folder / "streaming.csv")
    ]
    heading = f"{'stream':20} {'size':10} {'dtype':9} {'mean ms':>9} {'95%':>9} {'max':>9}"
    return [heading, *lines] if lines else []


if __name__ == "__main__":
    for part in (operators(Path(sys.argv[1])), streams(Path(sys.argv[1]))):
        if part:
            print("", *part, sep="\n")
