"""Notices a machine that is not quiet: numbers taken there compare little."""

from __future__ import annotations

import os
from collections.abc import Sequence

from tdnet_ops.bench import roofs
from tdnet_ops.bench.suite import Row

# What is tolerated: the slow rounds over the quick ones, a roof's rate over the best one seen, and
# runnable processes a thread. The run itself is among these once it goes on, and some threads of
# peers spin for a while after a call.
SPREAD = 1.3
RATE = 0.8
LOAD = 1.5


class Watch:
    """Looks at one case after the other of a run."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._best: dict[str, float] = {}

    def load(self, tolerated: float = 1.0) -> list[str]:
        """What the load average of the last minute says, in at most one line.

        Args:
            tolerated: runnable processes a thread.
        """
        load = os.getloadavg()[0]
        if load <= tolerated * self._threads:
            return []
        return [f"load average {load:.1f} with {self._threads} threads of ours"]

    def signs(self, rows: Sequence[Row]) -> list[str]:
        """Everything that speaks against the numbers of a case, each with what showed it."""
        timed = [row for row in rows if row.status == "timed"]
        return [*self.load(LOAD), *_wide_spreads(timed), *self._slow_roofs(timed)]

    def _slow_roofs(self, rows: Sequence[Row]) -> list[str]:
        """torch.mm, the peak and the copy do the same work in each case."""
        slow = []
        for row in rows:
            rate, unit = (row.gflops, "GFLOP/s") if row.gflops else (row.gbps, "GB/s")
            if row.peer not in (roofs.PEAK, roofs.MM, roofs.COPY) or rate is None:
                continue
            best = self._best[row.peer] = max(rate, self._best.get(row.peer, 0.0))
            if rate < RATE * best:
                slow.append(f"{row.peer} at {rate:.4g} {unit}, {best:.4g} at its best")
        return slow


def _wide_spreads(rows: Sequence[Row]) -> list[str]:
    wide = []
    for row in rows:
        assert row.q20_ms is not None
        assert row.q80_ms is not None
        spread = row.q80_ms / row.q20_ms
        if spread > SPREAD:
            wide.append(f"{row.peer} {spread:.1f}x")
    return [f"wide spread between rounds, q80 over q20: {', '.join(wide)}"] if wide else []
