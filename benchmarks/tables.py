"""The Markdown tables of docs/performance.md from CSV files of the benchmark suite.

    python benchmarks/tables.py benchmarks/results/*_cpu.csv

A table an operator, a row a case; a peer's column is how many times longer it takes, by round.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

Row = dict[str, str]


def _number(text: str, form: str) -> str:
    return format(float(text), form) if text else "-"


def _cells(case: list[Row], peers: list[str]) -> list[str]:
    ours = next(row for row in case if row["role"] == "ours")
    ratios = {row["peer"]: row["ratio_of_rounds"] for row in case if row["status"] == "timed"}
    return [
        ours["case"],
        _number(ours["median_ms"], ".3g"),
        _number(ours["gflops"], ".3g"),
        _number(ours["gbps"], ".3g"),
        _number(ours["percent_peak"], ".0f"),
        _number(ours["percent_mm_shapes"], ".0f"),
        *(_number(ratios.get(peer, ""), ".2f") for peer in peers),
    ]


def table(operator: str, rows: list[Row]) -> list[str]:
    rows = [row for row in rows if row["operator"] == operator]
    peers = list(
        dict.fromkeys(
            row["peer"]
            for row in rows
            if row["role"] == "peer" and row["status"] == "timed" and row["peer"] != "reference"
        )
    )
    head = [f"`{operator}`", "ours, ms", "GFLOP/s", "GB/s", "% peak", "% mm shapes", *peers]
    cases = dict.fromkeys(row["case"] for row in rows)
    body = [_cells([row for row in rows if row["case"] == case], peers) for case in cases]
    lines = [head, ["---"] * len(head), *body]
    return ["| " + " | ".join(line) + " |" for line in lines]


def main() -> None:
    rows: list[Row] = []
    for path in map(Path, sys.argv[1:]):
        with path.open(newline="") as file:
            rows += csv.DictReader(file)
    for operator in dict.fromkeys(row["operator"] for row in rows):
        print(*table(operator, rows), "", sep="\n")


if __name__ == "__main__":
    main()
