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
class Burst:
    """A peer's turn.

    Attributes:
        seconds: runs the turn, and returns the seconds that one of its calls took.
        calls: timed in a turn.
        timing: "clock", or "events" and "graph" on a device (see `device.py`).
    """

    seconds: Callable[[], float]
    calls: int
    timing: str = "clock"


@dataclass(frozen=True)
class Times:
    """Seconds a call, one number a round; numbers at the same place share their round."""

    rounds: tuple[float, ...]
    calls_a_round: int
    timing: str = "clock"

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


def interleave(bursts: Mapping[str, Burst], seconds: float) -> dict[str, Times]:
    """Times everybody once a round, until `seconds` are spent and `MINIMUM_ROUNDS` are done.

    The order rotates by one a round and turns round every other round, so that nobody always
    follows the same neighbour.

    Args:
        bursts: of calls that are warmed up already (compiled, allocated).
        seconds: to spend on all of them together; 0 is one round.
    """
    rounds: dict[str, list[float]] = {name: [] for name in bursts}
    least = MINIMUM_ROUNDS if seconds else 1
    collecting = gc.isenabled()
    gc.disable()
    try:
        end = time.perf_counter() + seconds
        done = 0
        while done < least or time.perf_counter() < end:
            for name in _order(list(bursts), done):
                rounds[name].append(bursts[name].seconds())
            done += 1
    finally:
        if collecting:
            gc.enable()
    return {
        name: Times(tuple(rounds[name]), burst.calls, burst.timing)
        for name, burst in bursts.items()
    }


def _order(names: Sequence[str], done: int) -> list[str]:
    start = done % len(names)
    order = [*names[start:], *names[:start]]
    return order[::-1] if done % 2 else order


def calls_to_fill(seconds: float, one: float) -> int:
    """How many calls of `one` second each take `seconds`, at least one."""
    return max(1, round(seconds / max(one, 1e-9)))


def clock_burst(call: Call) -> Burst:
    """Calls that have finished when they return, by the clock.

    A short call is repeated, after one that is not timed and brings its data and threads back.
    """
    call()
    repeat = calls_to_fill(BURST_SECONDS, _clock_seconds(call, 1))

    def turn() -> float:
        time.sleep(SETTLE_SECONDS)
        if repeat > 1:
            call()
        return _clock_seconds(call, repeat)

    return Burst(turn, repeat)


def _clock_seconds(call: Call, repeat: int) -> float:
    start = time.perf_counter()
    for _ in range(repeat):
        call()
    return (time.perf_counter() - start) / repeat
