# SPDX-License-Identifier: Apache-2.0
"""What is recorded in addition in a storm whose vCPUs share CPUs."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ipitrace.correlate.spans import StormTrace
from ipitrace.correlate.waiting import switched_out_ns, waiting_of
from ipitrace.measure.occupants import ThreadNames
from ipitrace.measure.steadiness import Looks
from ipitrace.storm.driver import Driver
from ipitrace.summary import Waited
from ipitrace.tracer.session import Tracer
from ipitrace.words.events import Kind
from ipitrace.words.scenarios import OVERCOMMITTED, Mode, Scenario


class Sharing:
    """One storm; it does nothing unless the vCPUs share CPUs and all events are recorded.

    Attributes:
        cpus: the CPU that vCPU i is pinned to; empty if nothing is to be done.
    """

    def __init__(self, guest: Driver, scenario: Scenario, mode: Mode) -> None:
        """Begin a repetition."""
        wanted = scenario.target_state in OVERCOMMITTED and mode == Mode.EVIDENCE
        self.cpus: Sequence[int] = (guest.cpus_in(scenario) or ()) if wanted else ()
        self._tids: tuple[int, ...] = ()
        self._names = ThreadNames(())

    def threads_known(self, tids: Sequence[int]) -> None:
        """The vCPUs' threads exist, and none has run yet."""
        self._tids = tuple(tids)
        self._names = ThreadNames(tids)

    def drained(self, tracers: Sequence[Tracer]) -> None:
        """Name the threads of the switches that the last of these has just drained."""
        if self.cpus:
            self._names.look(tracers[-1].news(Kind.SCHED_SWITCH))

    def waited(self, trace: StormTrace, events: NDArray[np.void], looks: Looks) -> Waited | None:
        """What sharing CPUs did; `events` are those of the whole storm."""
        if not self.cpus:
            return None
        self._names.look(events[events["kind"] == Kind.SCHED_SWITCH])
        return Waited(
            waiting=waiting_of(trace, self._tids),
            names=self._names.result(),
            switched_out_ns=sum(switched_out_ns(events, i) for i in range(len(self._tids))),
            run_delay_ns=_run_delay_ns(looks),
        )


def _run_delay_ns(looks: Looks) -> int | None:
    """The time for which the vCPUs' threads waited for a CPU, by the kernel's account."""
    if looks.start is None or looks.end is None:
        return None
    delays_ns = [
        late.run_delay_ns - early.run_delay_ns
        for early, late in zip(looks.start.threads, looks.end.threads, strict=True)
        if early.run_delay_ns is not None and late.run_delay_ns is not None
    ]
    return sum(delays_ns) if len(delays_ns) == len(looks.start.threads) else None
