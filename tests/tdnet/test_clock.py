from fractions import Fraction

import pytest

from tdnet.video.clock import Clock

TEN = Fraction(10)
TICK = Fraction(1, 90000)


def times(stamps, may_break=False, start=None):
    """Times of pictures with these stamps, in tenths of a second."""
    clock = Clock(TICK, TEN, start, may_break)
    pairs = [clock.next(None if s is None else Fraction(s) / 10, 1 / TEN) for s in stamps]
    return [10 * time for time, _ in pairs]


def test_recordings_that_were_appended_go_on_one_after_the_other():
    assert times([0, 1, 2, 0, 1, 2, 0, 1, 2]) == list(range(9))


def test_the_pause_within_an_appended_recording_stays():
    assert times([0, 1, 2, 0, 1, 5]) == [0, 1, 2, 3, 4, 8]


def test_one_stamp_out_of_line_shifts_nothing_after_it():
    assert times([0, 1, 2, 0, 4, 5, 6]) == [0, 1, 2, 3, 4, 5, 6]


def test_stamps_that_are_repeated_increase_by_a_tick():
    assert times([0, 1, 1, 2]) == [0, 1, 1 + 10 * TICK, 2]


def test_missing_stamps_follow_the_rate():
    assert times([None, None, 2, None], start=Fraction(0)) == [0, 1, 2, 3]


@pytest.mark.parametrize(("may_break", "last"), [(True, 2), (False, 180000)])
def test_a_long_gap_is_a_break_only_where_the_format_has_such(may_break, last):
    assert times([0, 1, 180000], may_break)[-1] == last


def test_a_gap_of_seconds_is_a_pause():
    assert times([0, 1, 90], may_break=True) == [0, 1, 90]


def test_negative_and_late_starts():
    assert times([-5, -4], start=Fraction(-1, 2)) == [0, 1]
    assert times([-5, -4], start=Fraction(0)) == [0, 1]
    assert times([15, 16], start=Fraction(0)) == [15, 16]
