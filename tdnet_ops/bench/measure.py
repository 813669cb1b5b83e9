"""Times several calls fairly: interleaved, the order rotated, in bursts long enough to measure."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Call = Callable[[], object]

MINIMUM_ROUNDS = 5
BURST_SECONDS = 0.01
# Threads of the peer before may still spin for work.
SETTLE_SECONDS = 0.005


@dataclass(frozen=True)
class Times:
    """Seconds a call, one number a round; numbers at the same place share their round."""

    rounds: tuple[float, ...]
    calls_a_round: int

    def quantile(self, fraction: float) -> float:
        """Seconds, interpolated between rounds."""
        ordered = sorted(self.rounds)
        place = fraction * (len(ordered) - 1)
        below = int(place)
        above = min(below + 1, len(ordered) - 1)
        return ordered[below] + (place - below) * (ordered[above] - ordered[below])

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)


def ratio_of_rounds(peer: Times, ours: Times) -> float:
    """The median over rounds of peer / ours: what disturbs a whole round cancels."""
    return statistics.median(p / o for p, o in zip(peer.rounds, ours.rounds, strict=True))


def interleave(
    calls: Mapping[str, Call], seconds: float, synchronize: Callable[[], object] | None = None
) -> dict[str, Times]:
    """Times every call once a round, until `seconds` are spent and `MINIMUM_ROUNDS` are done.

    A short call is repeated within its turn, after one that is not timed and brings its data and
    threads back. The order rotates by one a round and turns round every other round, so that
    nobody always follows the same neighbour.

    Args:
        calls: warmed up already (compiled, allocated).
        seconds: to spend on all calls together.
        synchronize: waits for what the calls have started, where they do not themselves.
    """
    wait = synchronize or (lambda: None)
    bursts = {name: _calls_a_burst(call, wait) for name, call in calls.items()}
    rounds: dict[str, list[float]] = {name: [] for name in calls}
    collecting = gc.isenabled()
    gc.disable()
    try:
        end = time.perf_counter() + seconds
        done = 0
        while done < MINIMUM_ROUNDS or time.perf_counter() < end:
            for name in _order(list(calls), done):
                rounds[name].append(_turn(calls[name], bursts[name], wait))
            done += 1
    finally:
        if collecting:
            gc.enable()
    return {name: Times(tuple(rounds[name]), bursts[name]) for name in calls}


def _order(names: Sequence[str], done: int) -> list[str]:
    start = done % len(names)
    order = [*names[start:], *names[:start]]
    return order[::-1] if done % 2 else order


def _calls_a_burst(call: Call, wait: Call) -> int:
    call()
    return max(1, round(BURST_SECONDS / _seconds(call, 1, wait)))


def _turn(call: Call, repeat: int, wait: Call) -> float:
    time.sleep(SETTLE_SECONDS)
    if repeat > 1:
        call()
    return _seconds(call, repeat, wait)


def _seconds(call: Call, repeat: int, wait: Call) -> float:
    wait()
    start = time.perf_counter()
    for _ in range(repeat):
        call()
    wait()
    return (time.perf_counter() - start) / repeat
