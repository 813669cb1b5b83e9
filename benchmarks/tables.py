"""The Markdown tables of docs/performance.md and docs/swap.md from the benchmark suite's CSV files.

    python benchmarks/tables.py benchmarks/results/*_cpu.csv
    python benchmarks/tables.py --blocks benchmarks/results/blocks/{forward,training}.csv
    python benchmarks/tables.py --streams benchmarks/results/streams/cpu.csv

The first prints a table an operator, a row a case; a peer's column is how many times longer it
takes, by round. The second prints one table of what `--case blocks` and the same with `--backward`
measured: times as long as ours, and the MB that a call holds beside its arguments. The third
prints what benchmarks/streaming_latency.py measured of models and of their optimised forms.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

Row = dict[str, str]


def _number(text: str, form: str) -> str:
    if not text:
        return "-"
    # 3 digits, but no exponent.
    return format(float(text), ",.0f" if form == ".3g" and float(text) >= 999.5 else form)


def _markdown(head: list[str], body: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *body]]


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
    return _markdown(head, body)


def _of_block(case: list[Row]) -> list[str]:
    """Ours in ms and MB, then the original and the fastest form of SDPA beside it."""
    timed = {row["peer"]: row for row in case if row["status"] == "timed"}
    ours = next(row for row in case if row["role"] == "ours")
    sdpa = [row for peer, row in timed.items() if peer.startswith("sdpa")]
    peers = [timed["published"], min(sdpa, key=lambda row: float(row["ratio_of_rounds"]))]
    return [
        f"{_number(ours['median_ms'], '.3g')} ms, {_megabytes(ours)}",
        *(f"{_number(row['ratio_of_rounds'], '.2f')}x, {_megabytes(row)}" for row in peers),
    ]


def _megabytes(row: Row) -> str:
    return f"{float(row['peak_memory_bytes']) / 1e6:.3g} MB"


def blocks_table(forward: list[Row], training: list[Row]) -> list[str]:
    head = ["block", "sizes", "forward", "original", "SDPA", "training", "original", "SDPA"]
    body = []
    for case in dict.fromkeys(row["case"] for row in forward):
        cells = [
            _of_block([row for row in rows if row["case"] == case]) for rows in (forward, training)
        ]
        shapes = next(row["shapes"] for row in forward if row["case"] == case)
        body.append([case, shapes, *cells[0], *cells[1]])
    return _markdown(head, body)


def streams_table(rows: list[Row]) -> list[str]:
    head = ["model", "size", "mean, p95, max ms", "optimised", "times as fast"]
    body = []
    for model, size in dict.fromkeys((row["model"], row["size"]) for row in rows):
        forms = {row["form"]: row for row in rows if (row["model"], row["size"]) == (model, size)}
        plain, fast = forms["ours"], forms["optimized"]
        cells = [
            ", ".join(_number(row[key], ",.0f") for key in ("mean_ms", "p95_ms", "max_ms"))
            for row in (plain, fast)
        ]
        gain = float(plain["mean_ms"]) / float(fast["mean_ms"])
        body.append([model, size, *cells, f"{gain:.2f}x"])
    return _markdown(head, body)


def _read(path: str) -> list[Row]:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def main() -> None:
    if sys.argv[1] == "--blocks":
        print(*blocks_table(*map(_read, sys.argv[2:])), sep="\n")
        return
    if sys.argv[1] == "--streams":
        print(*streams_table([row for path in sys.argv[2:] for row in _read(path)]), sep="\n")
        return
    rows = [row for path in sys.argv[1:] for row in _read(path)]
    for operator in dict.fromkeys(row["operator"] for row in rows):
        print(*table(operator, rows), "", sep="\n")


if __name__ == "__main__":
    main()
