"""From the time stamps of a container to exact times."""

import math
from fractions import Fraction

# MP4 counts the ticks that a frame is shown in 32 bits: at a microsecond that is over an hour.
_MOST_TICKS_A_SECOND = 1_000_000
# Where a format may break its time line (transport streams), a longer gap is such a break and no
# picture shown so long: FFmpeg's rule for its own conversions.
LONGEST_GAP_OF_A_BROKEN_TIME_LINE = Fraction(10)


class Clock:
    """Turns the time stamps of decoded pictures into exact, strictly increasing seconds.

    Stamps that jump back by a frame or more belong to another recording that was appended: it goes
    on one step after the last picture. A single stamp out of line shifts nothing after it.
    """

    def __init__(
        self,
        stream_tick: Fraction,
        frame_rate: Fraction,
        start: Fraction | None = None,
        may_break: bool = False,
    ):
        """Count from start, or from the first stamp.

        Args:
            stream_tick: what the stream's stamps are multiples of, in seconds.
            frame_rate: frames a second (an average where the rate varies).
            start: the stamp that is time 0, in seconds; None for the first one.
            may_break: whether long gaps are breaks of the time line too.
        """
        self.tick = common_tick(stream_tick, frame_rate)
        self._stream_tick = stream_tick
        self._frame_duration = 1 / frame_rate
        self._rounded = _is_coarse(stream_tick, frame_rate)
        self._may_break = may_break
        self._start = None if start is None else _nearest_multiple(start, stream_tick)
        self._last_stamp: Fraction | None = None
        self._last_time: Fraction | None = None
        self._last_step = self._frame_duration  # from picture to picture
        # Stamp and start before the last picture's break: what a stamp out of line returns to.
        self._before_break: tuple[Fraction, Fraction] | None = None

    def next(self, stamp: Fraction | None, duration: Fraction | None) -> tuple[Fraction, Fraction]:
        """Time and duration of the next picture, given its stamp and duration if they are known."""
        time = self._following_time() if stamp is None else self._time(stamp)
        if self._last_time is not None and time <= self._last_time:
            time = self._last_time + self.tick
        elif self._last_time is not None:
            self._last_step = time - self._last_time
        self._last_time = time
        return time, self._duration(duration)

    def _following_time(self) -> Fraction:
        return Fraction(0) if self._last_time is None else self._last_time + self._last_step

    def _time(self, stamp: Fraction) -> Fraction:
        if self._start is None or (self._last_stamp is None and stamp < self._start):
            self._start = stamp
        self._start = self._start_after_a_break(stamp, self._start)
        self._last_stamp = stamp
        return self._undo_rounding(stamp - self._start)

    def _start_after_a_break(self, stamp: Fraction, start: Fraction) -> Fraction:
        if self._last_stamp is None:
            return start
        if self._before_break is not None and stamp > self._before_break[0]:
            if not self._is_break(stamp, self._before_break[0]):
                start = self._before_break[1]
            self._before_break = None
        elif self._is_break(stamp, self._last_stamp):
            self._before_break = (self._last_stamp, start)
            start = stamp - self._following_time()
        else:
            self._before_break = None
        return start

    def _is_break(self, stamp: Fraction, last_stamp: Fraction) -> bool:
        gap = stamp - last_stamp
        if gap <= -self._frame_duration:
            return True
        return self._may_break and gap > LONGEST_GAP_OF_A_BROKEN_TIME_LINE

    def _undo_rounding(self, time: Fraction) -> Fraction:
        """The multiple of the frame duration that the container rounded to its own ticks.

        Matroska stores milliseconds: 0.033 s at 30000/1001 frames a second means 1001/30000 s.
        """
        exact = _nearest_multiple(time, self._frame_duration)
        if self._rounded and 2 * abs(exact - time) <= self._stream_tick:
            return exact
        return _nearest_multiple(time, self.tick)

    def _duration(self, duration: Fraction | None) -> Fraction:
        if not duration:
            return self._frame_duration
        if self._rounded and abs(duration - self._frame_duration) <= self._stream_tick:
            return self._frame_duration
        return duration


def common_tick(tick: Fraction, frame_rate: Fraction) -> Fraction:
    """A tick for exact times: the stream's, if need be split to divide the frame duration."""
    ticks_a_second = tick.denominator
    if _is_coarse(tick, frame_rate):
        ticks_a_second = math.lcm(ticks_a_second, frame_rate.numerator)
    if ticks_a_second > _MOST_TICKS_A_SECOND:
        ticks_a_second = min(tick.denominator, _MOST_TICKS_A_SECOND)
    return Fraction(1, ticks_a_second)


def _is_coarse(tick: Fraction, frame_rate: Fraction) -> bool:
    """Whether a container's tick is so long that frame times in it are visibly rounded."""
    return 200 * tick * frame_rate > 1


def _nearest_multiple(value: Fraction, unit: Fraction) -> Fraction:
    return round(value / unit) * unit
