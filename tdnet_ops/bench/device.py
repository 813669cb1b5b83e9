"""Times calls on a GPU: by events or by replayed graphs, on data that no cache holds."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch

from tdnet_ops.bench import measure
from tdnet_ops.bench.measure import Burst, Call, calls_to_fill

# A kernel of 20 us may look ten times as long while Python launches it: whatever looks shorter
# than this is recorded into a graph, whose replays have no gaps.
GRAPH_BELOW_SECONDS = 200e-6
# Of which cache a GPU is assumed to have where torch does not say, the largest of today's.
UNKNOWN_CACHE_BYTES = 128 * 2**20
MOST_INPUT_SETS = 256


def cache_bytes(device: torch.device) -> int:
    """The last-level cache of a GPU."""
    properties = torch.get_device_module(device).get_device_properties(device)
    sizes = (getattr(properties, name, 0) for name in ("L2_cache_size", "last_level_cache_size"))
    return max(sizes) or UNKNOWN_CACHE_BYTES


def input_sets(case_bytes: int, cache: int) -> int:
    """How many sets of tensors to rotate among, so that none is in the cache at its next turn.

    Args:
        case_bytes: that one call reads and writes.
        cache: bytes that the others have to fill.
    """
    return min(MOST_INPUT_SETS, 1 + -(-cache // max(case_bytes, 1)))


class Rotation:
    """One call after the other; results stay until their turn comes again, so that they rotate."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self._calls = tuple(calls)
        self._results: list[object] = [None] * len(calls)
        self._next = 0

    def __len__(self) -> int:
        return len(self._calls)

    def __call__(self) -> None:
        self._results[self._next] = self._calls[self._next]()
        self._next = (self._next + 1) % len(self._calls)


def device_burst(calls: Sequence[Call], device: torch.device) -> Burst:
    """Bursts of calls that only start work on a GPU.

    Args:
        calls: the same one on each set of tensors, warmed up.
        device: that they run on, torch's current one.

    Returns:
        A burst timed by events, or by a graph's replays where that can be recorded and launching
        would count (`GRAPH_BELOW_SECONDS`).
    """
    rotation = Rotation(calls)
    event_seconds = functools.partial(_event_seconds, device)
    event_seconds(rotation, len(rotation))
    one = event_seconds(rotation, len(rotation))
    if one < GRAPH_BELOW_SECONDS and device.type == "cuda":
        recorded = len(rotation) * calls_to_fill(measure.BURST_SECONDS, one * len(rotation))
        replay = _record(rotation, recorded)
        if replay is not None:
            return _graph_burst(replay, recorded, event_seconds)
    repeat = calls_to_fill(measure.BURST_SECONDS, one)
    return Burst(lambda: event_seconds(rotation, repeat), repeat, "events")


def _graph_burst(replay: Call, recorded: int, event_seconds: Callable[[Call, int], float]) -> Burst:
    """Replays of a graph of `recorded` calls."""
    replay()
    replays = calls_to_fill(measure.BURST_SECONDS, event_seconds(replay, 1))
    return Burst(lambda: event_seconds(replay, replays) / recorded, replays * recorded, "graph")


def _event_seconds(device: torch.device, call: Call, repeat: int) -> float:
    """Seconds a call between two events, after one that is not timed and keeps the GPU busy."""
    module = torch.get_device_module(device)
    start, end = (module.Event(enable_timing=True) for _ in range(2))
    call()
    start.record()
    for _ in range(repeat):
        call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3 / repeat


def _record(call: Call, repeat: int) -> Call | None:
    """A graph of `repeat` calls, or None: some libraries synchronise or allocate while they run."""
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    try:
        # thread_local: what other threads do (a compiler's workers) does not end the recording.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            for _ in range(repeat):
                call()
    except Exception:  # Whatever a peer's library raises must not end the run.
        torch.cuda.synchronize()
        return None
    return graph.replay
