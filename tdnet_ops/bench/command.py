"""The command line of the benchmark suite."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch
from rich.console import Console

from tdnet_ops.bench import peers, plot, report
from tdnet_ops.bench.case import DTYPES, LAYOUTS, Case, Setting
from tdnet_ops.bench.cases import CASES
from tdnet_ops.bench.engines import Refusal
from tdnet_ops.bench.suite import Row, run_case

SECONDS = 15.0

FINISHED, FAILED, INTERRUPTED = 0, 1, 130


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def _threads(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text!r}")
    return int(text)


def _device(text: str) -> torch.device:
    available = ["cpu"] + [x for x in ("cuda", "xpu") if getattr(torch, x).is_available()]
    if text not in available:
        raise argparse.ArgumentTypeError(
            f"expected one of {available} on this machine, got {text!r}"
        )
    return torch.device(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"expected seconds from 0, got {text!r}")
    return seconds


def _output(text: str) -> Path:
    path = Path(text)
    if not os.access(path.parent, os.W_OK) or path.is_dir():
        raise argparse.ArgumentTypeError(f"expected a file name in a writable folder, got {text!r}")
    return path


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="tdnet_ops.bench",
        description="Times every operator beside its peers in one process.",
    )
    operators = list(dict.fromkeys(case.operator for case in CASES))
    names = list(dict.fromkeys(case.name for case in CASES))
    parser.add_argument("--op", nargs="+", choices=operators, metavar="NAME", help="default: all")
    parser.add_argument(
        "--case", nargs="+", choices=names, metavar="NAME", help="see --list; default: all but tiny"
    )
    parser.add_argument(
        "--peers",
        nargs="+",
        choices=peers.NAMES,
        default=peers.NAMES,
        metavar="NAME",
        help=f"{', '.join(peers.NAMES)}; default: all",
    )
    parser.add_argument(
        "--threads",
        type=_threads,
        metavar="N",
        default=torch.get_num_threads(),
        help="of ours and every peer; default: %(default)s",
    )
    parser.add_argument(
        "--device",
        type=_device,
        default="cpu",
        metavar="NAME",
        help="cpu, cuda or xpu; default: %(default)s",
    )
    parser.add_argument(
        "--layout",
        choices=LAYOUTS,
        default="channels_last",
        help="of the maps given to our operators; default: %(default)s",
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="default: %(default)s")
    parser.add_argument(
        "--seconds",
        type=_seconds,
        metavar="S",
        default=SECONDS,
        help="spent on timing each case, all peers together; default: %(default)s",
    )
    parser.add_argument("--csv", type=_output, metavar="F", help="a line a peer and case")
    parser.add_argument("--plot", type=_output, metavar="F.png", help="the roofline, as PNG")
    parser.add_argument("--list", action="store_true", help="print the cases and stop")
    return parser


def _selected(options: argparse.Namespace) -> list[Case]:
    """The cases of --op and --case; those made to be named only if they are, or to be listed."""
    named, everything = options.case, options.list
    return [
        case
        for case in CASES
        if (not options.op or case.operator in options.op)
        and (case.name in named if named else everything or not case.on_request)
    ]


def _print_list(console: Console, cases: Sequence[Case]) -> None:
    for case in cases:
        asked = " (only if named by --case)" if case.on_request else ""
        console.print(f"{case}: {case.shapes}{asked}", soft_wrap=True, markup=False)


def _print_notes(console: Console, rows: Sequence[Row], said: set[str]) -> None:
    """Every reason once; what differs from case to case, every time."""
    for row in rows:
        line = f"{row.peer}: {row.note}"
        if row.status == "wrong":
            line = f"{row.peer} is wrong at {row.operator} {row.case}, not timed: {row.note}"
        if row.note and line not in said:
            console.print(line, soft_wrap=True, markup=False)
            said.add(line)


def _measure(options: argparse.Namespace, cases: Sequence[Case], arguments: Sequence[str]) -> int:
    dtype = DTYPES[options.dtype]
    setting = Setting(options.layout, dtype, options.threads, options.device)
    torch.set_num_threads(options.threads)
    stamped = report.stamp(setting, arguments)
    console = report.console()
    for key, value in stamped.items():
        console.print(f"{key}: {value}", soft_wrap=True, markup=False)
    rows: list[Row] = []
    said: set[str] = set()
    try:
        for case in cases:
            with Console(stderr=True).status(str(case)):
                measured = run_case(case, setting, options.peers, options.seconds)
            rows += measured
            _print_notes(console, measured, said)
            console.print(report.table_of_case(measured))
            if options.csv:
                report.write_csv(options.csv, rows, stamped)
    except KeyboardInterrupt:
        print("interrupted: the finished cases are kept", file=sys.stderr)
        return INTERRUPTED
    if len(cases) > 1:
        console.print(report.table_of_ratios(rows))
    for name in set(options.peers) - {row.peer for row in rows}:
        console.print(f"{name}: none of these operators has such a form")
    ours_failed = any(row.role == "ours" and row.status != "timed" for row in rows)
    if options.plot and not ours_failed:
        plot.write_roofline(options.plot, rows, stamped)
    return FAILED if ours_failed else FINISHED


def main(arguments: Sequence[str]) -> int:
    """Runs `python -m tdnet_ops.bench`.

    Returns:
        The exit code: 0, 1 if an operator of ours is wrong, 130 after Ctrl-C.

    Raises:
        SystemExit: 2, after one line, for arguments that make no sense.
    """
    parser = _parser()
    options = parser.parse_args(list(arguments))
    cases = _selected(options)
    if not cases:
        named = [case.name for case in CASES if case.operator in options.op]
        parser.error(f"argument --case: {', '.join(options.op)} has {', '.join(named)}")
    if options.list:
        _print_list(report.console(), cases)
        return FINISHED
    if options.plot:
        try:
            plot.load_pyplot()
        except Refusal as refusal:
            parser.error(f"argument --plot: {refusal}")
    return _measure(options, cases, arguments)
