"""Tables for people, CSV and JSON for programs."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import platform
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path

import torch

import tdnet_ops
from tdnet_ops.bench.case import Setting
from tdnet_ops.bench.screen import Table
from tdnet_ops.bench.suite import Row


def stamp(setting: Setting, arguments: Sequence[str]) -> dict[str, str]:
    """What the numbers depend on."""
    return {
        "cpu": _cpu_model(),
        "device": _device_name(setting.device),
        "instruction_set": str(tdnet_ops.build_info()["cpu"]["in_use"]),
        "threads": str(setting.threads),
        "pass": "forward and backward" if setting.backward else "forward",
        "layout": setting.layout,
        "dtype": str(setting.dtype).removeprefix("torch."),
        "torch": str(torch.__version__),
        "tdnet": tdnet_ops.__version__,
        "command": f"python -m tdnet_ops.bench {shlex.join(arguments)}".strip(),
    }


def _device_name(device: torch.device) -> str:
    if device.type == "cpu":
        return "cpu"
    return str(torch.get_device_module(device).get_device_name(device))


def _cpu_model() -> str:
    """Its name as Linux knows it."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def table_of_case(rows: Sequence[Row]) -> Table:
    """Everybody timed at one case; the ratios say how many times longer a peer takes than ours."""
    columns = (
        "",
        "median ms",
        "q20",
        "q80",
        "ratio",
        "by round",
        "GFLOP/s",
        "GB/s",
        "% peak",
        "% mm shapes",
        "% copy",
        "memory MB",
    )
    table = Table(f"{rows[0].operator} {rows[0].case}: {rows[0].shapes}", columns)
    for row in rows:
        if row.median_ms is None:
            continue
        numbers = (
            digits(row.median_ms),
            digits(row.q20_ms),
            digits(row.q80_ms),
            _ratio(row.ratio),
            _ratio(row.ratio_of_rounds),
            digits(row.gflops),
            digits(row.gbps),
            _percent(row.percent_peak),
            _percent(row.percent_mm_shapes),
            _percent(row.percent_copy),
            _megabytes(row.peak_memory_bytes),
        )
        style = {"ours": "bold", "roof": "dim", "product": "dim"}.get(row.role)
        name = f"{row.peer} (ours)" if row.role == "ours" else row.peer
        table.rows.append(((name, *numbers), style))
    return table


def table_of_ratios(rows: Sequence[Row]) -> Table:
    """One line a case: our time, and every peer's median over ours."""
    names = list(dict.fromkeys(row.peer for row in rows if row.ratio is not None))
    columns = ("case", "ours, ms", "% peak", "% copy", *names)
    table = Table("How many times longer than ours (ratio of medians)", columns)
    for ours in (row for row in rows if row.role == "ours"):
        ratios = {
            row.peer: row.ratio
            for row in rows
            if (row.operator, row.case) == (ours.operator, ours.case)
        }
        cells = (
            f"{ours.operator} {ours.case}",
            digits(ours.median_ms),
            _percent(ours.percent_peak),
            _percent(ours.percent_copy),
            *(_ratio(ratios.get(name)) for name in names),
        )
        table.rows.append((cells, None))
    return table


def digits(number: float | None, least: int = 3) -> str:
    """`least` significant digits or more, never an exponent."""
    if number is None:
        return "-"
    if number == 0 or not math.isfinite(number):
        return f"{number:g}"
    decimals = max(0, least - 1 - math.floor(math.log10(abs(number))))
    return f"{number:,.{decimals}f}"


def _ratio(number: float | None) -> str:
    return "-" if number is None else f"{digits(number)}x"


def _percent(number: float | None) -> str:
    return digits(number, 2)


def _megabytes(count: int | None) -> str:
    return "-" if count is None else digits(count / 1e6)


def write_csv(path: Path, rows: Sequence[Row], stamped: Mapping[str, str]) -> None:
    """One line a row, each with the stamp.

    Raises:
        OSError: the folder cannot be written.
    """
    columns = [field.name for field in fields(Row)]
    with whole_file(path) as part, part.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*columns, *stamped])
        writer.writeheader()
        writer.writerows({**asdict(row), **stamped} for row in rows)


def write_json(path: Path, rows: Sequence[Row], stamped: Mapping[str, str]) -> None:
    """An object of the stamp and a list of the rows, the numbers that JSON has none for as null.

    Raises:
        OSError: the folder cannot be written.
    """
    whole = {"stamp": dict(stamped), "rows": [_finite(asdict(row)) for row in rows]}
    with whole_file(path) as part:
        part.write_text(json.dumps(whole, indent=1, allow_nan=False) + "\n")


def _finite(row: Mapping[str, object]) -> dict[str, object]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a name to write to, renamed to `path` at the end: `path` is never half written."""
    part = path.with_name(path.name + ".part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
