"""The most memory that a call holds at once, its result included, beside what it was given."""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Callable
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5)


def peak_bytes(call: Callable[[], object], device: torch.device) -> int | None:
    """Runs a call once that has run before.

    On a CPU: how far the process grows, as Linux counts the pages it touches: kernels' own buffers
    are in it, and what malloc leaves unused between them. What a library keeps from call to call is
    not. On a GPU: what torch allocates.

    Returns:
        Bytes, or None where the system does not tell.
    """
    return _peak_of_process(call) if device.type == "cpu" else _peak_of_device(call, device)


def _peak_of_process(call: Callable[[], object]) -> int | None:
    gc.collect()
    try:
        # Pages that malloc keeps would take a call's buffers without growing.
        ctypes.CDLL(None).malloc_trim(0)
        _CLEAR.write_text(_RESET_PEAK)
    except (AttributeError, OSError):  # no glibc, no Linux, or not ours to write
        return None
    before = _status("VmRSS")
    result = call()
    peak = _status("VmHWM")
    del result
    return max(0, peak - before)


def _status(name: str) -> int:
    match = re.search(rf"^{name}:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    assert match is not None
    return 1024 * int(match[1])


def _peak_of_device(call: Callable[[], object], device: torch.device) -> int:
    module = torch.get_device_module(device)
    module.synchronize()
    module.reset_peak_memory_stats(device)
    before = module.memory_allocated(device)
    result = call()
    module.synchronize()
    peak = module.max_memory_allocated(device)
    del result
    return int(peak - before)
