"""Which of the samples run every day, and which are slow."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import pytest

from samples.layouts import LAYOUTS, SPACED_LAYOUTS
from samples.sample import Sample

_LAYOUTS = LAYOUTS + SPACED_LAYOUTS
_DTYPES = ("torch.float32", "torch.float64", "torch.float16", "torch.bfloat16")


def half_slow(found: Sequence[Sample], test: str) -> list[Any]:
    """Of each size, every dtype in every other layout for every day; the rest is slow.

    Layouts change addresses, dtypes change arithmetic. Which half it is depends on the name of the
    test too: several tests of the same samples share out the pairs.
    """
    return [
        pytest.param(
            sample, id=str(sample), marks=[pytest.mark.slow] if _is_odd(sample, test) else []
        )
        for sample in found
    ]


def _is_odd(sample: Sample, test: str) -> bool:
    start = zlib.crc32(f"{test} {sample.operator} {sample.name}".encode())
    place = _LAYOUTS.index(sample.layout) + _DTYPES.index(str(sample.dtype))
    return (start + place) % 2 == 1
