"""The samples run every line and every template instance of csrc/cuda."""

import covered
import pytest


@pytest.fixture(scope="module")
def coverage():
    return covered.run()


@pytest.mark.slow
def test_every_line_runs(coverage):
    assert len(coverage.lines) > 1000
    assert coverage.missing_lines() == []


@pytest.mark.slow
def test_every_instance_runs(coverage):
    assert sum("attend<" in name for name in coverage.functions) >= 6
    assert coverage.missing_functions() == []


def test_counts_tell_what_is_missing():
    """The tests above can fail."""
    found = covered.Coverage()
    place = "csrc/cuda/tiles/map.h"
    found.lines |= {(place, 1): 0, (place, 2): 3}
    found.functions |= {"run()": 2, "left_out<int>()": 0}
    assert found.missing_lines() == [f"{place}:1: {covered.line_text(place, 1)}"]
    assert found.missing_functions() == ["left_out<int>()"]
