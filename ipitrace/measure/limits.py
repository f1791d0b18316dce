# SPDX-License-Identifier: Apache-2.0
"""The limits of a run's rate and time; every guest but the built-in one has them by default.

docs/guests.md gives the reasons for the figures.
"""

import math
import time
from collections.abc import Iterable
from typing import Final

from ipitrace.base.errors import MeasurementError, UsageError
from ipitrace.recording.result import RunLimits

DEFAULT_RATE_HZ: Final = 10_000.0
DEFAULT_TIME_S: Final = 60.0
GRACE_S: Final = 5.0
"""Time for connecting to the guest and returning, which is not part of a storm."""


def chosen_limits(
    max_rate_hz: float | None, max_time_s: float | None, *, ours: bool
) -> RunLimits | None:
    """The limits that apply to a run.

    Args:
        max_rate_hz: requested sends per second; 0 is no limit, None means not requested.
        max_time_s: seconds of storms, with the same meaning of 0 and None.
        ours: the guest is the built-in one, which has no limits by default.
    """
    rate_hz = (0.0 if ours else DEFAULT_RATE_HZ) if max_rate_hz is None else max_rate_hz
    time_s = (0.0 if ours else DEFAULT_TIME_S) if max_time_s is None else max_time_s
    if not rate_hz and not time_s:
        return None
    return RunLimits(
        rate_hz or None, time_s or None, by_default=max_rate_hz is None and max_time_s is None
    )


def limited_pace(
    pace_cycles: int, limits: RunLimits | None, tsc_hz: float, senders: int = 1
) -> int:
    """The pace of each sender, made longer if all together would exceed the limit of the rate.

    The pace is the time from an acknowledgement to the next send. The IPIs' own time is added to
    it, so the rate stays below the limit.
    """
    if limits is None or limits.max_rate_hz is None:
        return pace_cycles
    return max(pace_cycles, math.ceil(senders * tsc_hz / limits.max_rate_hz))


def check_time(storms: Iterable[tuple[int, int]], limits: RunLimits | None, tsc_hz: float) -> None:
    """Check before the first storm that all storms can end within the time limit.

    Args:
        storms: sends (warm-up included) and pace in cycles of each.
        limits: of the run.
        tsc_hz: the guest TSC's rate.

    Raises:
        UsageError: the paces alone take longer.
    """
    least_s = least_seconds(storms, tsc_hz)
    if limits is not None and limits.max_time_s is not None and least_s > limits.max_time_s:
        raise UsageError(
            f"The storms would take {least_s:.0f} s or more, and --max-time is "
            f"{limits.max_time_s:g} s.",
            "Reduce --count, --repeat or the scenarios (--scenario), or increase --max-time. "
            "A low --max-rate also makes storms longer.",
        )


def least_seconds(storms: Iterable[tuple[int, int]], tsc_hz: float) -> float:
    """The sum of the storms' paces, see check_time()."""
    return sum(sends * pace for sends, pace in storms) / tsc_hz


class Budget:
    """The time that storms may take together."""

    def __init__(self, limits: RunLimits | None) -> None:
        self._limit_s = None if limits is None else limits.max_time_s
        self._spent_s = 0.0
        self._began_s = time.monotonic()

    def begin(self) -> None:
        """Start the time of a storm.

        Raises:
            MeasurementError: no time is left for it.
        """
        self._began_s = time.monotonic()
        if self._limit_s is not None and self._spent_s >= self._limit_s:
            raise _time_is_up(self._limit_s)

    def check(self) -> None:
        """Check the time of the running storm.

        Raises:
            MeasurementError: it has run for too long.
        """
        taken_s = time.monotonic() - self._began_s - GRACE_S
        if self._limit_s is not None and self._spent_s + taken_s > self._limit_s:
            raise _time_is_up(self._limit_s)

    def end(self, storm_s: float | None) -> None:
        """End the time of a storm; `storm_s` is its duration by the guest's clock, or None."""
        taken_s = time.monotonic() - self._began_s
        self._spent_s += taken_s if storm_s is None else min(storm_s, taken_s)


def _time_is_up(limit_s: float) -> MeasurementError:
    return MeasurementError(
        f"The storms took longer than --max-time, {limit_s:g} s.",
        "Reduce --count, --repeat or the scenarios (--scenario), or increase --max-time.",
    )
