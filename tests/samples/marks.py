"""Which of the samples run every day, and which are slow."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import pytest

import samples
from samples.sample import Sample


def sample_param(sample: Sample, slow: bool) -> Any:
    """A parameter of a test, by the name of the sample."""
    return pytest.param(sample, id=str(sample), marks=[pytest.mark.slow] if slow else [])


def with_half_slow(found: Sequence[Sample]) -> Callable[[Callable[..., None]], Any]:
    """The decorator of a test with samples: of each size, every dtype in every other layout runs
    every day, the rest is slow.

    Layouts change addresses, dtypes change arithmetic. Which half it is depends on the name of the
    test too: several tests of the same samples share out the pairs.
    """

    def decorate(test: Callable[..., None]) -> Any:
        marked = [sample_param(sample, _is_odd(sample, test.__name__)) for sample in found]
        return pytest.mark.parametrize("sample", marked)(test)

    return decorate


def _is_odd(sample: Sample, test: str) -> bool:
    start = zlib.crc32(f"{test} {sample.operator} {sample.name}".encode())
    layouts = samples.LAYOUTS + samples.SPACED_LAYOUTS
    place = layouts.index(sample.layout) + samples.DTYPES.index(sample.dtype)
    return (start + place) % 2 == 1
