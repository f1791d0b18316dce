# SPDX-License-Identifier: Apache-2.0
"""Samples host state before and after a storm, and both clocks during it."""

import time
from collections.abc import Collection, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ipitrace.clock import Clock, Sandwich
from ipitrace.host.conditions import Conditions, read_conditions
from ipitrace.measure.steadiness import Looks
from ipitrace.words.events import Kind

_SANDWICH_EVERY_S: Final = 0.02
_ON_ITS_CPU: Final = (Kind.KVM_ENTRY, Kind.KVM_EXIT, Kind.SCHED_SWITCH)


class Onlooker:
    """Samples the host before the vCPUs run and after the storm; times ipitrace's own ticks."""

    def __init__(self, cpus: Collection[int]) -> None:
        self._cpus = cpus
        self._tids: Sequence[int] = ()
        self._start: Conditions | None = None
        self._end: Conditions | None = None
        self._last_tick_s: float | None = None
        self._longest_tick_s = 0.0

    def threads_known(self, tids: Sequence[int]) -> None:
        """Sample the host: the vCPUs' threads exist, and none has run yet."""
        self._tids = tuple(tids)
        self._start = read_conditions(self._tids, self._cpus)
        self._last_tick_s = time.monotonic()

    def tick(self) -> None:
        """Record the time of a tick."""
        now_s = time.monotonic()
        if self._last_tick_s is not None:
            self._longest_tick_s = max(self._longest_tick_s, now_s - self._last_tick_s)
        self._last_tick_s = now_s

    def over(self) -> None:
        """Sample the host: the storm has ended, and the vCPUs' threads still exist."""
        self.tick()
        self._end = read_conditions(self._tids, self._cpus)

    def looks(self, events: NDArray[np.void] | None = None) -> Looks:
        """The samples; with recorded events, also the CPUs on which each vCPU ran."""
        return Looks(self._start, self._end, self._longest_tick_s, _seen_on(events))


def _seen_on(events: NDArray[np.void] | None) -> dict[int, dict[int, int]]:
    """CPU to events, by vCPU. Counts only events that happen on the CPU of the vCPU's thread."""
    if events is None:
        return {}
    own = events[np.isin(events["kind"], _ON_ITS_CPU)]
    pairs, counts = np.unique(
        np.stack([own["vcpu"], own["cpu"]]).astype(np.int64), axis=1, return_counts=True
    )
    found: dict[int, dict[int, int]] = {}
    for vcpu, cpu, n in zip(*pairs, counts, strict=True):
        found.setdefault(int(vcpu), {})[int(cpu)] = int(n)
    return found


class ClockReader:
    """Reads both clocks every 20 ms while a storm runs."""

    def __init__(self, clock: Clock | None) -> None:
        self._clock = clock
        self._next_s = 0.0
        self.sandwiches: list[Sandwich] = []

    def read(self, *, now: bool = False) -> None:
        """Read if the last reading is at least 20 ms old, or if `now` is set."""
        if self._clock is None or (not now and time.monotonic() < self._next_s):
            return
        self.sandwiches.append(self._clock.sandwich())
        self._next_s = time.monotonic() + _SANDWICH_EVERY_S
