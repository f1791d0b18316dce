# SPDX-License-Identifier: Apache-2.0
"""The interface of all drivers: run one storm in one guest and return its records."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ipitrace.recording.guest import GuestResult
from ipitrace.storm.limits import FASTEST_TSC_HZ
from ipitrace.words.scenarios import Scenario


@dataclass(frozen=True)
class StormRequest:
    """The parameters of one storm.

    Attributes:
        scenario: the kind of IPI.
        n_vcpus: vCPUs of the guest; vCPU 0 sends.
        count: measured sends of each sender, after `warmup` unmeasured ones.
        pace_cycles: guest TSC cycles from one acknowledgement to the next send.
        timeout_s: an IPI not acknowledged within this time counts as incomplete.
        inject: a deliberate fault, to test that it is reported; None in real runs.
        handler_burn_cycles: cycles that each handler deliberately wastes after its stamp.
        tsc_hz: the guest TSC's rate as the run knows it; for guests that do not state it.
    """

    scenario: Scenario
    n_vcpus: int
    count: int
    warmup: int
    pace_cycles: int
    timeout_s: float = 5.0  # an overloaded host may delay a vCPU by more than a second
    inject: str | None = None
    handler_burn_cycles: int = 0
    tsc_hz: float = FASTEST_TSC_HZ


@dataclass(frozen=True)
class Hooks:
    """Callbacks at points of a storm.

    Attributes:
        threads_known: receives the vCPUs' kernel thread ids, in vCPU order, before any vCPU
            runs.
        mark: called before the first measured send and after the last acknowledgement, by the
            sender's own thread; its result is kept.
        tick: called by the thread that called run(), with the number of sends if it is known;
            returns the seconds until the next call, or None for 20 ms. If it raises, the storm
            is ended, and run() raises the same exception.
        over: called by that thread when the storm has ended and the vCPUs' threads still exist.
    """

    threads_known: Callable[[Sequence[int]], None] = lambda _tids: None
    mark: Callable[[], NDArray[np.uint64] | None] = lambda: None
    tick: Callable[[int], float | None] = lambda _sent: None
    over: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Mark:
    """A snapshot at one end of the measured window.

    Attributes:
        ts_ns: CLOCK_MONOTONIC.
        stats: each vCPU's KVM counters, or None if KVM has none.
        events_seen: the result of Hooks.mark.
    """

    ts_ns: int
    stats: tuple[dict[str, int], ...] | None
    events_seen: NDArray[np.uint64] | None


@dataclass(frozen=True)
class Storm:
    """The result of one storm; all stamps are guest TSC.

    Attributes:
        sends: the measured part of the senders' logs, one after the other (dtype abi.SEND).
        receipts: each vCPU's measured handler entries (dtype abi.RECEIPT).
        handled: each handler's own counter of measured entries, from guest memory.
        incomplete: IPIs not acknowledged in time, including the warm-up.
        spurious: interrupts that arrived on the spurious vector.
        start: the snapshot before the first measured send; None if no snapshot could be taken
            at that moment: then only the stamps limit the window.
        end: the snapshot after the last measured send, likewise.
        tsc_offset: guest minus host TSC as KVM reports it, None if it does not.
        tsc_khz: the guest TSC's frequency as KVM reports it, None if it does not.
        tsc_offsets_start: each vCPU's tsc_offset before the storm.
        tsc_offsets_end: each vCPU's after it; if the two differ, see clock.offset_changes.
        tsc_ratio: guest cycles per host cycle as KVM reports it, fixed point, and its fraction
            bits; None if it does not.
        no_tsc: why tsc_offset is None, if the driver knows.
        vector: the interrupt vector of the IPIs.
        as_asked: the share of handler entries that found their vCPU in the requested state;
            None if the guest does not check it.
    """

    sends: NDArray[np.void]
    receipts: tuple[NDArray[np.void], ...]
    handled: tuple[int, ...]
    incomplete: int
    spurious: int
    start: Mark | None
    end: Mark | None
    tsc_offset: int | None
    tsc_khz: int | None
    tsc_offsets_start: tuple[int | None, ...] = ()
    tsc_offsets_end: tuple[int | None, ...] = ()
    tsc_ratio: tuple[int, int] | None = None
    no_tsc: str | None = None
    vector: int = 0
    as_asked: float | None = None

    def sends_of(self, sender: int) -> NDArray[np.void]:
        """The part of `sends` that one vCPU sent."""
        own: NDArray[np.void] = self.sends[self.sends["sender"] == sender]
        return own

    @property
    def counted(self) -> NDArray[np.int64] | None:
        """Events between start and end, as counted by Hooks.mark; None if it did not count."""
        if self.start is None or self.end is None:
            return None
        if self.start.events_seen is None or self.end.events_seen is None:
            return None
        first = self.start.events_seen.astype(np.int64)
        return np.asarray(self.end.events_seen.astype(np.int64) - first)


class Driver(Protocol):
    """One kind of guest."""

    @property
    def n_vcpus(self) -> int:
        """vCPUs of the guest; vCPU 0 sends."""

    @property
    def pinned_cpus(self) -> tuple[int, ...] | None:
        """The host CPU of each vCPU if they are pinned."""

    @property
    def max_count(self) -> int:
        """The largest storm, including the warm-up, that the guest can log."""

    @property
    def tsc_khz(self) -> int | None:
        """The guest TSC's rate if it is known before a storm."""

    @property
    def apic_ids(self) -> tuple[int, ...] | None:
        """Each vCPU's APIC id; None if it equals the vCPU's number."""

    def unsupported(self, scenario: Scenario) -> str | None:
        """Why this guest cannot run `scenario`, or None if it can."""

    def targets(self, scenario: Scenario) -> tuple[int, ...]:
        """The vCPUs that handle each IPI of `scenario`."""

    def cpus_in(self, scenario: Scenario) -> tuple[int, ...] | None:
        """The host CPU of each vCPU in storms of `scenario`, if they are pinned."""

    def describe(self) -> GuestResult:
        """The guest as in run.json."""

    def run(self, request: StormRequest, hooks: Hooks) -> Storm:
        """Run one storm; in a new guest if ipitrace creates the guest."""
