"""The command line of the benchmark suite."""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import torch

from tdnet_ops.bench import compare, peers, plot, quiet, report, shape
from tdnet_ops.bench.case import DTYPES, LAYOUTS, Case, Setting
from tdnet_ops.bench.cases import CASES
from tdnet_ops.bench.device import cache_bytes
from tdnet_ops.bench.engines import Refusal
from tdnet_ops.bench.screen import Screen, screen
from tdnet_ops.bench.suite import Row, failed_case, run_case
from tdnet_ops.operators import OPERATORS

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


def _percent(text: str) -> float:
    try:
        percent = float(text.removesuffix("%"))
    except ValueError:
        percent = math.nan
    if not 0 <= percent < math.inf:
        raise argparse.ArgumentTypeError(f"expected a percentage from 0 such as 5%, got {text!r}")
    return percent / 100


def _shape(text: str) -> Case:
    try:
        return shape.case_of_shape(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


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
    groups = list(dict.fromkeys(case.group for case in CASES if case.group))
    names = [*dict.fromkeys(case.name for case in CASES), *groups]
    parser.add_argument("--op", nargs="+", choices=operators, metavar="NAME", help="default: all")
    parser.add_argument(
        "--case",
        nargs="+",
        choices=names,
        metavar="NAME",
        help="see --list; blocks: the attention of other people's models; default: all but those "
        "and tiny, none with --shape",
    )
    parser.add_argument(
        "--shape",
        nargs="+",
        type=_shape,
        default=[],
        metavar=shape.FORM,
        help="cases of attention_propagate without phi and residual: batch, channels of keys and "
        "of values of all heads together, query map, key map",
    )
    parser.add_argument(
        "--backward",
        action="store_true",
        help="time a forward and a backward pass together, of everybody who has one",
    )
    parser.add_argument(
        "--peers",
        nargs="+",
        choices=peers.NAMES,
        metavar="NAME",
        help=f"{', '.join(peers.NAMES)}; default: all that the device has, without "
        f"{' and '.join(peers.COMPILED)} where --seconds is 0",
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
        help="spent on timing each case, all peers together, 0: one round; default: %(default)s",
    )
    parser.add_argument(
        "--budget",
        type=_seconds,
        metavar="S",
        default=math.inf,
        help="of the whole run: cases share what is left of it, one of each operator before the "
        "second of any, and none starts after it",
    )
    parser.add_argument(
        "--warm",
        action="store_true",
        help="one set of tensors, which a GPU's cache may hold; default: as many as outgrow it",
    )
    parser.add_argument("--csv", type=_output, metavar="F", help="a line a peer and case")
    parser.add_argument("--json", type=_output, metavar="F", help="the same as JSON")
    parser.add_argument("--plot", type=_output, metavar="F.png", help="the roofline, as PNG")
    parser.add_argument("--list", action="store_true", help="print the cases and stop")
    parser.add_argument(
        "--compare",
        nargs=2,
        type=Path,
        metavar=("OLD.csv", "NEW.csv"),
        help="measure nothing: print how ours changed beside its peers from one file to the other",
    )
    parser.add_argument(
        "--fail-above",
        type=_percent,
        metavar="P%",
        help="of --compare: exit code 1 where a case became slower by more",
    )
    return parser


def _selected(options: argparse.Namespace) -> list[Case]:
    """Those of --op, --case and --shape that --backward can take.

    Cases that are made to be named run only if they are, or are listed.
    """
    named, everything = options.case, options.list
    table = [
        case
        for case in CASES
        if (
            case.name in named or case.group in named
            if named
            else not options.shape and (everything or not case.on_request)
        )
    ]
    return [
        case
        for case in [*table, *options.shape]
        if (not options.op or case.operator in options.op)
        and (not options.backward or OPERATORS[case.operator].differentiable)
    ]


def _why_none(options: argparse.Namespace) -> str:
    """What is wrong with --op, --case, --shape and --backward together."""
    if options.backward and not any(OPERATORS[x].differentiable for x in options.op or ()):
        return f"argument --backward: {', '.join(options.op or _without_gradient())}: no gradient"
    if not options.case:
        return f"argument --shape: cases of attention_propagate, got --op {' '.join(options.op)}"
    named = [case.name for case in CASES if case.operator in options.op]
    return f"argument --case: {', '.join(options.op)} has {', '.join(named)}"


def _one_of_each_first(cases: Sequence[Case]) -> list[Case]:
    """The first case of every operator, then every second one, and so on."""
    seen: Counter[str] = Counter()
    turns = []
    for case in cases:
        turns.append(seen[case.operator])
        seen[case.operator] += 1
    return [cases[i] for i in sorted(range(len(cases)), key=turns.__getitem__)]


def _print_list(shown: Screen, cases: Sequence[Case]) -> None:
    for case in cases:
        asked = " (only if named by --case)" if case.on_request else ""
        shown.say(f"{case}: {case.shapes}{asked}")


def _print_notes(shown: Screen, rows: Sequence[Row], said: set[str]) -> None:
    """Every reason once; what differs from case to case, every time."""
    for row in rows:
        line = f"{row.peer}: {row.note}"
        if row.status == "wrong":
            line = f"{row.peer} is wrong at {row.operator} {row.case}, not timed: {row.note}"
        if row.status == "failed":
            line = f"{row.operator} {row.case} failed: {row.note}"
        if row.note and line not in said:
            shown.say(line)
            said.add(line)


def _setting(options: argparse.Namespace) -> Setting:
    on_cpu = options.device.type == "cpu"
    cache = 0 if on_cpu or options.warm else cache_bytes(options.device)
    dtype = DTYPES[options.dtype]
    return Setting(options.layout, dtype, options.threads, options.device, cache, options.backward)


def _measured_cases(
    options: argparse.Namespace,
    cases: Sequence[Case],
    setting: Setting,
    names: Sequence[str],
    shown: Screen,
) -> Iterator[list[Row]]:
    """The rows of one case after the other, until the budget is spent."""
    if math.isfinite(options.budget):
        cases = _one_of_each_first(cases)
    end = time.monotonic() + options.budget
    for number, case in enumerate(cases):
        left = end - time.monotonic()
        if left < 0:
            missing = ", ".join(map(str, cases[number:]))
            print(f"the budget is spent, not measured: {missing}", file=sys.stderr)
            return
        seconds = min(options.seconds, left / (len(cases) - number))
        with shown.status(str(case)):
            try:
                rows = run_case(case, setting, names, seconds)
            except Exception as error:  # What a case dies of must not take the others along.
                rows = [failed_case(case, setting, error)]
        yield rows


def _measure(options: argparse.Namespace, cases: Sequence[Case], arguments: Sequence[str]) -> int:
    setting = _setting(options)
    torch.set_num_threads(options.threads)
    stamped = report.stamp(setting, arguments)
    shown = screen()
    for key, value in stamped.items():
        shown.say(f"{key}: {value}")
    names = options.peers or peers.usual(options.device, options.seconds)
    if not (options.peers or options.seconds):
        slow = ", ".join(peers.slow(options.device))
        shown.say(f"left out, for they compile: {slow}; see --peers")
    if options.backward:
        shown.say(f"left out, for they have no gradient: {', '.join(_without_gradient())}")
    watch = quiet.Watch(options.threads)
    for sign in watch.load():
        shown.say(f"not quiet, before the first case: {sign}")
    rows: list[Row] = []
    said: set[str] = set()
    interrupted = False
    try:
        for measured in _measured_cases(options, cases, setting, names, shown):
            signs = watch.signs(measured)
            rows += [replace(row, disturbed="; ".join(signs)) for row in measured]
            for path, write in ((options.csv, report.write_csv), (options.json, report.write_json)):
                if path:
                    write(path, rows, stamped)
            _print_notes(shown, measured, said)
            shown.show(report.table_of_case(measured))
            for sign in signs:
                shown.say(f"not quiet: {sign}")
    except KeyboardInterrupt:
        print("interrupted: the finished cases are kept", file=sys.stderr)
        interrupted = True
    _print_summary(shown, rows, options.peers or ())
    ours = [row for row in rows if row.role == "ours"]
    if options.plot and any(row.status == "timed" for row in ours):
        plot.write_roofline(options.plot, rows, stamped)
    if interrupted:
        return INTERRUPTED
    return FAILED if any(row.status != "timed" for row in ours) else FINISHED


def _print_summary(shown: Screen, rows: Sequence[Row], asked: Sequence[str]) -> None:
    """All cases in one table, how many of them are in doubt, and peers that none of them has."""
    measured = {(row.operator, row.case) for row in rows}
    disturbed = {(row.operator, row.case) for row in rows if row.disturbed}
    if len(measured) > 1:
        shown.show(report.table_of_ratios(rows))
    if disturbed:
        advice = "measure again on an idle machine"
        shown.say(f"not quiet in {len(disturbed)} of {len(measured)} cases: {advice}")
    for name in set(asked) - {row.peer for row in rows}:
        shown.say(f"{name}: none of these operators has such a form")


def _without_gradient() -> list[str]:
    return [name for name, x in OPERATORS.items() if x.public and not x.differentiable]


def _compare(then: Path, now: Path, limit: float | None) -> int:
    """Prints how ours changed from one CSV to the other; the exit code.

    Raises:
        ValueError: a file is none of ours, or they do not compare.
    """
    compared = compare.compare(compare.read(then), compare.read(now))
    shown = screen()
    for difference in compared.differences:
        shown.say(difference)
    shown.show(compare.table(compared))
    for case in compared.missing:
        shown.say(f"not compared: {case}")
    for case in compared.broken:
        shown.say(f"no longer timed: {case}")
    slower = [] if limit is None else compared.slower_than(limit)
    for change in slower:
        doubt = f" (not quiet {change.disturbed}: measure again)" if change.disturbed else ""
        shown.say(f"slower by {compare.percent(change.slower)}: {change.case}{doubt}")
    return FAILED if slower or compared.broken else FINISHED


def main(arguments: Sequence[str]) -> int:
    """Runs `python -m tdnet_ops.bench`.

    Returns:
        The exit code: 0, 1 if an operator of ours is wrong or a case failed (with --compare:
        became slower than --fail-above allows), 130 after Ctrl-C.

    Raises:
        SystemExit: 2, after one line, for arguments that make no sense.
    """
    parser = _parser()
    options = parser.parse_args(list(arguments))
    if options.fail_above is not None and not options.compare:
        parser.error("argument --fail-above: expected --compare beside it")
    if options.compare:
        try:
            then, now = options.compare
            return _compare(then, now, options.fail_above)
        except ValueError as error:
            parser.error(f"argument --compare: {error}")
    cases = _selected(options)
    if not cases:
        parser.error(_why_none(options))
    if options.list:
        _print_list(screen(), cases)
        return FINISHED
    if options.plot:
        try:
            plot.load_pyplot()
        except Refusal as refusal:
            parser.error(f"argument --plot: {refusal}")
    return _measure(options, cases, arguments)
