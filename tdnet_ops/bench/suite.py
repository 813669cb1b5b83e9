"""Runs one case: builds and checks everybody, times all in the same rounds, counts the rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

import tdnet_ops
from tdnet_ops.bench import peers, roofs
from tdnet_ops.bench.case import TOLERANCES, Case, Problem, Setting
from tdnet_ops.bench.engines import Refusal
from tdnet_ops.bench.measure import Times, interleave, ratio_of_rounds


@dataclass(frozen=True)
class Row:
    """One peer at one case. Numbers are None where they were not measured or mean nothing.

    Attributes:
        role: "ours", "peer" or "roof".
        status: "timed", "refused" (could not run) or "wrong" (ran, not timed).
        error: max|a - b| / max|b| against the reference.
        ratio: the peer's median over ours.
        ratio_of_rounds: the median over rounds of the peer's time over ours.
        gflops, gbps: 1e9 operations and bytes a second, as the case counts them.
        percent_mm, percent_mm_shapes, percent_copy: of the rates of the roofs.
        note: the reason of a refusal or what is wrong.
    """

    operator: str
    case: str
    shapes: str
    peer: str
    version: str
    role: str
    status: str
    error: float | None = None
    median_ms: float | None = None
    q20_ms: float | None = None
    q80_ms: float | None = None
    ratio: float | None = None
    ratio_of_rounds: float | None = None
    rounds: int | None = None
    calls_a_round: int | None = None
    operations: int | None = None
    moved_bytes: int | None = None
    gflops: float | None = None
    gbps: float | None = None
    percent_mm: float | None = None
    percent_mm_shapes: float | None = None
    percent_copy: float | None = None
    note: str = ""


def run_case(case: Case, setting: Setting, names: Sequence[str], seconds: float) -> list[Row]:
    """Measures one case.

    Args:
        case: what.
        setting: how; the caller has set torch's threads.
        names: peers, of `peers.NAMES`; one that has no form of the case is left out.
        seconds: to spend on timing.

    Returns:
        Rows of ours, the peers in order, the roofs; refused and wrong peers have a note.
    """
    with torch.inference_mode():
        problem = case.build(setting)
        ours = peers.ours(case, setting)
        others = [name for name in names if name != ours and peers.exists(name, problem)]
        calls, rows = _checked_calls(case, problem, setting, [ours, *others])
        if ours not in calls:
            return rows
        measured = roofs.measured_roofs(problem, setting)
        everybody = {**calls, **{name: roof.call for name, roof in measured.items()}}
        synchronize = None if setting.device.type == "cpu" else torch.accelerator.synchronize
        times = interleave(everybody, seconds, synchronize)
    rows += [
        Row(case.operator, case.name, case.shapes, name, torch.__version__, "roof", "timed")
        for name in measured
    ]
    work = dict.fromkeys(calls, (problem.operations, problem.compulsory_bytes))
    work |= {name: (roof.operations, roof.moved_bytes) for name, roof in measured.items()}
    return [_timed(row, times, ours, work) if row.peer in times else row for row in rows]


def _checked_calls(
    case: Case, problem: Problem, setting: Setting, names: Sequence[str]
) -> tuple[dict[str, peers.Call], list[Row]]:
    """The calls that may be timed, and a row for each name; the first name is ours."""
    operator = getattr(tdnet_ops, case.operator)
    expected = operator(*problem.arguments, backend="reference")
    tolerance = TOLERANCES[setting.dtype]
    calls: dict[str, peers.Call] = {}
    rows: list[Row] = []
    for name in names:
        role = "peer" if rows else "ours"
        status, note, error = "timed", "", None
        try:
            call = peers.build(name, case, problem, setting)
            error = problem.error(peers.run_once(call), expected)
        except Refusal as refusal:
            status, note = "refused", str(refusal)
        else:
            if error <= tolerance:
                calls[name] = call
            else:
                status, note = "wrong", f"error {error:.1e}, allowed {tolerance:.1e}"
        version = peers.version(name)
        row = Row(case.operator, case.name, case.shapes, name, version, role, status, error)
        rows.append(replace(row, note=note))
    return calls, rows


def _timed(
    row: Row, times: Mapping[str, Times], ours: str, work: Mapping[str, tuple[int, int]]
) -> Row:
    """The row with its times and rates; `work` is (operations, bytes) of everybody timed."""
    mine, reference = times[row.peer], times[ours]
    gflops, gbps = _rates(work, times, row.peer)
    compared = row.role == "peer"
    return replace(
        row,
        median_ms=mine.median * 1e3,
        q20_ms=mine.quantile(0.2) * 1e3,
        q80_ms=mine.quantile(0.8) * 1e3,
        ratio=mine.median / reference.median if compared else None,
        ratio_of_rounds=ratio_of_rounds(mine, reference) if compared else None,
        rounds=len(mine.rounds),
        calls_a_round=mine.calls_a_round,
        operations=work[row.peer][0],
        moved_bytes=work[row.peer][1],
        gflops=gflops or None,
        gbps=gbps,
        percent_mm=_percent(work, times, row.peer, roofs.MM, 0),
        percent_mm_shapes=_percent(work, times, row.peer, roofs.MM_SHAPES, 0),
        percent_copy=_percent(work, times, row.peer, roofs.COPY, 1),
    )


def _rates(
    work: Mapping[str, tuple[int, int]], times: Mapping[str, Times], name: str
) -> tuple[float, float]:
    """GFLOP/s and GB/s."""
    operations, moved_bytes = work[name]
    return operations / times[name].median / 1e9, moved_bytes / times[name].median / 1e9


def _percent(
    work: Mapping[str, tuple[int, int]],
    times: Mapping[str, Times],
    name: str,
    roof: str,
    kind: int,
) -> float | None:
    """The median over rounds of the share of a roof's rate; kind: 0 operations, 1 bytes."""
    if roof not in times or not work[name][kind]:
        return None
    done = work[name][kind] / work[roof][kind]
    return 100 * done * ratio_of_rounds(times[roof], times[name])
