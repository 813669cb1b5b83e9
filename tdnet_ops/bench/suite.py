"""Runs one case: builds and checks everybody, times all in the same rounds, counts the rates."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

import tdnet_ops
from tdnet_ops.bench import backward, device, memory, peers, precision, roofs
from tdnet_ops.bench.case import TOLERANCES, Case, Form, Problem, Setting
from tdnet_ops.bench.engines import Refusal
from tdnet_ops.bench.measure import Burst, Times, clock_burst, interleave, ratio_of_rounds


@dataclass(frozen=True)
class Row:
    """One peer at one case. Numbers are None where they were not measured or mean nothing.

    Attributes:
        role: "ours", "peer", "product" (torch.mm) or "roof".
        status: "timed", "refused" (could not run), "wrong" (ran, not timed), "right" (ran, not
            timed because ours is wrong), or, for ours, "failed": the case ended with an error.
        error: max|a - b| / max|b| against the reference.
        peak_memory_bytes: the most that a call holds beside its arguments, see `memory.py`.
        ratio: the peer's median over ours.
        ratio_of_rounds: the median over rounds of the peer's time over ours.
        timing: by the "clock", or on a device by "events" or by a "graph" that is replayed.
        input_sets: sets of tensors that the calls rotate among.
        gflops, gbps: 1e9 operations and bytes a second, as the case counts them.
        percent_peak, percent_mm_shapes, percent_copy: of the rates measured in the same rounds.
        note: the reason of a refusal or what is wrong.
        disturbed: signs that the machine was not quiet.
    """

    operator: str
    case: str
    shapes: str
    peer: str
    version: str
    role: str
    status: str
    error: float | None = None
    peak_memory_bytes: int | None = None
    median_ms: float | None = None
    q20_ms: float | None = None
    q80_ms: float | None = None
    ratio: float | None = None
    ratio_of_rounds: float | None = None
    rounds: int | None = None
    calls_a_round: int | None = None
    timing: str | None = None
    input_sets: int | None = None
    operations: int | None = None
    moved_bytes: int | None = None
    gflops: float | None = None
    gbps: float | None = None
    percent_peak: float | None = None
    percent_mm_shapes: float | None = None
    percent_copy: float | None = None
    note: str = ""
    disturbed: str = ""


def run_case(case: Case, setting: Setting, names: Sequence[str], seconds: float) -> list[Row]:
    """Measures one case, float32 held to float32 whatever torch's flags say.

    Args:
        case: what.
        setting: how; the caller has set torch's threads.
        names: peers, of `peers.NAMES`; one that has no form of the case is left out.
        seconds: to spend on timing; 0 is one round.

    Returns:
        Rows of ours, the peers in order, the roofs; refused and wrong peers have a note.
    """
    with torch.inference_mode(not setting.backward), precision.ieee():
        problems = _problems(case, setting)
        ours = peers.ours(case, setting, problems[0].arguments)
        others = [name for name in names if name != ours and peers.exists(name, problems[0])]
        calls, rows = _checked_calls(case, problems, setting, [ours, *others])
        if ours not in calls:
            return [_untimed(row) for row in rows]
        measured = roofs.measured_roofs(problems[0], setting)
        everybody: dict[str, Sequence[Callable[[], object]]] = {
            **calls,
            **{name: [roof.call] for name, roof in measured.items()},
        }
        bursts = {name: _burst(each, setting.device) for name, each in everybody.items()}
        times = interleave(bursts, seconds)
    rows += [
        Row(case.operator, case.name, case.shapes, name, torch.__version__, role, "timed")
        for name in measured
        for role in ["roof" if name in roofs.LIMITS else "product"]
    ]
    work = dict.fromkeys(calls, (problems[0].operations, problems[0].compulsory_bytes))
    work |= {name: (roof.operations, roof.moved_bytes) for name, roof in measured.items()}
    sets = {name: len(each) for name, each in everybody.items()}
    return [
        replace(_timed(row, times, ours, work), input_sets=sets[row.peer])
        if row.peer in times
        else row
        for row in rows
    ]


def _untimed(row: Row) -> Row:
    return replace(row, status="right") if row.status == "timed" else row


def failed_case(case: Case, setting: Setting, error: Exception) -> Row:
    """The row of a case that ended with an error which is no peer's."""
    note = peers.first_line(error)
    version = tdnet_ops.__version__
    ours = peers.ours(case, setting)
    return Row(case.operator, case.name, case.shapes, ours, version, "ours", "failed", note=note)


def _problems(case: Case, setting: Setting) -> list[Problem]:
    """The case with one set of tensors, or with as many as outgrow the cache of the device."""
    problem = _problem(case, setting)
    if setting.cache_bytes == 0:
        return [problem]
    sets = device.input_sets(problem.compulsory_bytes, setting.cache_bytes)
    return [problem, *(_problem(case, setting) for _ in range(sets - 1))]


def _problem(case: Case, setting: Setting) -> Problem:
    problem = case.build(setting)
    return backward.counted(problem) if setting.backward else problem


def _burst(calls: Sequence[Callable[[], object]], where: torch.device) -> Burst:
    if where.type == "cpu":
        return clock_burst(calls[0] if len(calls) == 1 else device.Rotation(calls))
    return device.device_burst(calls, where)


def _checked_calls(
    case: Case, problems: Sequence[Problem], setting: Setting, names: Sequence[str]
) -> tuple[dict[str, list[peers.Call]], list[Row]]:
    """The calls that may be timed, one a set of tensors, and a row for each name; ours first."""
    reference = functools.partial(getattr(tdnet_ops, case.operator), backend="reference")
    definition = [Form(reference, problems[0].arguments)]
    expected = _calls(definition, problems[0], setting)[0]()
    tolerance = TOLERANCES[setting.dtype]
    checked: dict[str, list[peers.Call]] = {}
    rows: list[Row] = []
    for name in names:
        role = "peer" if rows else "ours"
        status, note, error, held = "timed", "", None, None
        try:
            forms = peers.build(name, case, problems, setting)
            first, calls = _calls(forms, problems[0], setting)
            error = problems[0].error(peers.run_once(first), expected)
            for call in calls:
                peers.run_once(call)
        except Refusal as refusal:
            status, note = "refused", str(refusal)
        else:
            if error <= tolerance:
                checked[name] = calls
                if name not in peers.KEEP_MEMORY:
                    held = memory.peak_bytes(calls[0], setting.device)
            else:
                status, note = "wrong", f"error {error:.1e}, allowed {tolerance:.1e}"
        version = peers.version(name)
        row = Row(case.operator, case.name, case.shapes, name, version, role, status, error)
        rows.append(replace(row, note=note, peak_memory_bytes=held))
    return checked, rows


def _calls(
    forms: Sequence[Form], problem: Problem, setting: Setting
) -> tuple[peers.Call, list[peers.Call]]:
    """The call whose result is compared with the reference's, and those that are timed."""
    if setting.backward:
        timed = [backward.timed_call(form) for form in forms]
        return backward.checked_call(forms[0], problem.arguments), [*timed]
    calls = [functools.partial(form.function, *form.tensors) for form in forms]
    return calls[0], [*calls]


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
        timing=mine.timing,
        operations=work[row.peer][0],
        moved_bytes=work[row.peer][1],
        gflops=gflops or None,
        gbps=gbps or None,
        percent_peak=_percent(work, times, row.peer, roofs.PEAK, 0),
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
