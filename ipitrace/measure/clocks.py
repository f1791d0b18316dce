# SPDX-License-Identifier: Apache-2.0
"""A run's readings of the host's clocks, and the TSC figures that its guests report."""

import time
from collections.abc import Mapping
from typing import Final

from ipitrace.base.units import NS_PER_S
from ipitrace.clock import Clock, GuestTsc, Sandwich, measure_frequency, stamp_resolution_ns
from ipitrace.host.fingerprint import read_fingerprint
from ipitrace.measure.repetition import Recorded
from ipitrace.measure.trust import clock_result
from ipitrace.recording.result import ClockResult

_RATE_S: Final = 0.02
_EARLIER: Final = 32  # readings of the clocks with which the next repetition's map starts


def open_clock() -> Clock | None:
    """This host's clocks; None if they cannot be read."""
    try:
        return Clock(stamp_resolution_ns(read_fingerprint().clocksource))
    except OSError:
        return None


def tsc_hz_of_host() -> float | None:
    """This host's TSC rate, measured in 20 ms against CLOCK_MONOTONIC; None if it is unreadable."""
    clock = open_clock()
    if clock is None:
        return None
    first = clock.sandwich()
    time.sleep(_RATE_S)
    measured = measure_frequency([first, clock.sandwich()])
    return None if measured is None else measured.hz


class ClockReadings:
    """Collects the data of a run's clock result over its repetitions."""

    def __init__(self, clock: Clock | None) -> None:
        """Take the first reading now: a longer time between readings gives a more exact rate."""
        self._sandwiches: list[Sandwich] = [clock.sandwich()] if clock else []
        self._tsc_khz: int | None = None
        self._tsc_offset: int | None = None
        self._scale = 1.0
        self._bound_cycles = 0
        self._violations: dict[str, int] = {}

    def latest(self) -> list[Sandwich]:
        """The last few readings. A repetition alone may be too short for exact rates."""
        return self._sandwiches[-_EARLIER:]

    def tsc_hz(self, recorded: Recorded) -> float | None:
        """The guest TSC's rate from all readings, including those of `recorded` (not added yet)."""
        if recorded.storm.tsc_khz is not None:
            return recorded.storm.tsc_khz * 1000.0
        measured = measure_frequency([*self._sandwiches, *recorded.sandwiches])
        return None if measured is None else measured.hz * self._scale

    def guest_cycles_per_ns(self) -> float | None:
        """The guest TSC's rate from all readings; None if it was not measured."""
        measured = measure_frequency(self._sandwiches)
        return None if measured is None else measured.hz * self._scale / NS_PER_S

    def add(self, recorded: Recorded) -> None:
        """Add a repetition."""
        storm = recorded.storm
        if recorded.trace is not None:
            self._bound_cycles = max(self._bound_cycles, recorded.trace.bound_cycles)
        self._sandwiches += recorded.sandwiches
        self._tsc_khz, self._tsc_offset = storm.tsc_khz, storm.tsc_offset
        if storm.tsc_ratio is not None:
            self._scale = GuestTsc(0, *storm.tsc_ratio).scale
        for kind, n in recorded.violations.items():
            self._violations[kind] = self._violations.get(kind, 0) + n

    def result(
        self, *, shares_tsc: bool, stated_by: str, violations: Mapping[str, int]
    ) -> ClockResult:
        """The run's clock result.

        Args:
            shares_tsc: the guest's TSC follows from this host's by an offset and a ratio.
            stated_by: the source of the guest TSC's rate.
            violations: effects before their causes that were counted elsewhere, by kind.
        """
        return clock_result(
            self._sandwiches if shares_tsc else (),
            tsc_khz=self._tsc_khz,
            tsc_offset=self._tsc_offset,
            bound_cycles=self._bound_cycles,
            violations={**violations, **self._violations},
            scale=self._scale,
            stated_by=stated_by,
        )
