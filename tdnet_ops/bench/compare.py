"""Whether ours has become slower from one CSV of the suite to another.

Machines differ in load and clock from day to day, so milliseconds of two runs say little. What is
compared is ours beside something else that ran in the same rounds and has not changed since: each
peer of the same version in both runs, the median of all; where there is none, the roof that ours is
closer to, the peak or the copy.
"""

from __future__ import annotations

import csv
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tdnet_ops import backends
from tdnet_ops.bench.report import digits
from tdnet_ops.bench.screen import Table

Row = Mapping[str, str]

# Runs that differ in one of these are not compared; files of older releases lack the first.
_SETTINGS = {"pass": "forward", "dtype": "", "layout": "", "threads": "", "device": ""}
_ROOFS = ("peak", "copy")
_TOLD = ("cpu", "instruction_set", "torch", "tdnet")


@dataclass(frozen=True)
class Change:
    """Ours at one case, then and now.

    Attributes:
        then_ms, now_ms: medians.
        slower: what ours takes now over what it took then, beside what it is held against; above 1
            is slower. None: nothing in both runs to hold it against.
        against: what that is, for people, and how far it agrees.
        disturbed: the runs whose machine was not quiet.
    """

    case: str
    then_ms: float
    now_ms: float
    slower: float | None
    against: str
    disturbed: str


@dataclass(frozen=True)
class Comparison:
    """Of two runs.

    Attributes:
        changes: of the cases that both have timed.
        broken: cases that ended well then, and now with an error or a wrong result.
        missing: cases that only one of them has, with its name.
        differences: of the machines and versions.
    """

    changes: list[Change]
    broken: list[str]
    missing: list[str]
    differences: list[str]

    def slower_than(self, limit: float) -> list[Change]:
        """Cases that take more than `limit` (0.05: 5%) longer."""
        return [x for x in self.changes if x.slower is not None and x.slower > 1 + limit]


def read(path: Path) -> list[Row]:
    """The lines of a CSV that --csv wrote.

    Raises:
        ValueError: it is none.
    """
    try:
        with path.open(newline="") as file:
            rows: list[Row] = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    columns = {"operator", "case", "peer", "role", "status", "median_ms", "ratio_of_rounds"}
    if not rows or not columns <= rows[0].keys():
        raise ValueError(f"{path}: expected lines that --csv wrote")
    return rows


def compare(then: Sequence[Row], now: Sequence[Row]) -> Comparison:
    """Ours in two runs, case by case.

    Raises:
        ValueError: they differ in what was asked of them, or have no case in common.
    """
    for name, default in _SETTINGS.items():
        old, new = (run[0].get(name) or default for run in (then, now))
        if old != new:
            raise ValueError(f"expected two runs of one {name}, got {old!r} and {new!r}")
    old_cases, new_cases = _by_case(then), _by_case(now)
    both = [case for case in old_cases if case in new_cases]
    if not both:
        raise ValueError("expected two runs with a case in common, got none")
    timed = [case for case in both if _ours(old_cases[case])["status"] == "timed"]
    broken = [case for case in timed if _ours(new_cases[case])["status"] != "timed"]
    return Comparison(
        changes=[
            _change(case, old_cases[case], new_cases[case]) for case in timed if case not in broken
        ],
        broken=broken,
        missing=[f"{case} (then only)" for case in old_cases if case not in new_cases]
        + [f"{case} (now only)" for case in new_cases if case not in old_cases],
        differences=[
            f"{name}: {then[0].get(name)} then, {now[0].get(name)} now"
            for name in _TOLD
            if then[0].get(name) != now[0].get(name)
        ],
    )


def _by_case(rows: Sequence[Row]) -> dict[str, list[Row]]:
    cases: dict[str, list[Row]] = {}
    for row in rows:
        cases.setdefault(f"{row['operator']} {row['case']}", []).append(row)
    return cases


def _ours(case: Sequence[Row]) -> Row:
    return next(row for row in case if row["role"] == "ours")


def _change(case: str, then: Sequence[Row], now: Sequence[Row]) -> Change:
    old, new = _ours(then), _ours(now)
    slower, against = _beside_peers(then, now)
    if slower is None:
        slower, against = _beside_a_roof(old, new)
    disturbed = [name for name, row in (("then", old), ("now", new)) if row.get("disturbed")]
    return Change(
        case,
        float(old["median_ms"]),
        float(new["median_ms"]),
        slower,
        against,
        " and ".join(disturbed),
    )


def _beside_peers(then: Sequence[Row], now: Sequence[Row]) -> tuple[float | None, str]:
    """The median over peers of then's ratio over now's: a ratio falls where ours gets slower."""
    old, new = _ratios(then), _ratios(now)
    changes = [old[peer] / new[peer] for peer in old if peer in new]
    if not changes:
        return None, "nothing"
    if len(changes) == 1:
        return changes[0], "1 peer"
    agreement = f"{percent(min(changes))} to {percent(max(changes))}"
    return statistics.median(changes), f"{len(changes)} peers, {agreement}"


def _beside_a_roof(old: Row, new: Row) -> tuple[float | None, str]:
    """Ours then and now as shares of a roof."""
    shares = {roof: (old.get(f"percent_{roof}"), new.get(f"percent_{roof}")) for roof in _ROOFS}
    known = {roof: (float(x), float(y)) for roof, (x, y) in shares.items() if x and y}
    if not known:
        return None, "nothing"
    closest = max(known, key=known.__getitem__)
    then, now = known[closest]
    return then / now, f"the {closest}"


def _ratios(case: Sequence[Row]) -> dict[tuple[str, str], float]:
    """By peer and version; our other backends change as ours does."""
    return {
        (row["peer"], row["version"]): float(row["ratio_of_rounds"])
        for row in case
        if row["role"] == "peer" and row["status"] == "timed" and row["peer"] not in backends.NAMES
    }


def table(comparison: Comparison) -> Table:
    """A line a case."""
    columns = ("", "ms then", "ms now", "by the clock", "slower by", "beside", "not quiet")
    shown = Table("Ours now against then", columns)
    for x in comparison.changes:
        cells = (
            x.case,
            digits(x.then_ms),
            digits(x.now_ms),
            percent(x.now_ms / x.then_ms),
            percent(x.slower),
            x.against,
            x.disturbed,
        )
        shown.rows.append((cells, None))
    return shown


def percent(factor: float | None) -> str:
    """How much more than 1: 1.05 is +5.0%."""
    return "-" if factor is None else f"{100 * (factor - 1):+.1f}%"
