# SPDX-License-Identifier: Apache-2.0
"""One storm, reduced to the data for its scenario's row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ipitrace.correlate.exits import ExitTable
from ipitrace.correlate.pairing import pair_receipts, taken
from ipitrace.correlate.spans import Spans
from ipitrace.correlate.stamps import ABSENT
from ipitrace.correlate.waiting import Waiting
from ipitrace.correlate.weights import TwinDistance
from ipitrace.host.interrupts import InterruptDelta
from ipitrace.storm.driver import Storm
from ipitrace.words.events import Kind
from ipitrace.words.scenarios import Mode, Route, Scenario, routes_of
from ipitrace.words.threads import NamedThread

NO_STATS_FD = "this KVM has no KVM_GET_STATS_FD"
FOREIGN_STATS = "only the VMM of a vCPU can read its statistics from KVM"


_NO_CYCLES = np.empty(0, np.int64)


@dataclass(frozen=True)
class OfVcpu:
    """The cycles of the IPIs that one vCPU sent (S, R) and handled (D); empty arrays if none."""

    send: NDArray[np.int64] = field(default_factory=_NO_CYCLES.copy)
    deliver: NDArray[np.int64] = field(default_factory=_NO_CYCLES.copy)
    round_trip: NDArray[np.int64] = field(default_factory=_NO_CYCLES.copy)


@dataclass(frozen=True)
class Cycles:
    """The cycles that one storm measured; arrays in the order of the sends.

    Attributes:
        send: S of every measured send.
        deliver: D of every handler entry, on all targets.
        round_trip: R of every send acknowledged in time.
        early: handler entries whose stamp is not later than that of their send; if all vCPUs
            have the same TSC, there must be none.
        unpaired: handler entries without a matching send.
        last_deliver: D of the last target of every send that all targets handled; empty if each
            send has one target.
        by_vcpu: the same by vCPU; empty if there are only one sender and one target.
    """

    send: NDArray[np.int64]
    deliver: NDArray[np.int64]
    round_trip: NDArray[np.int64]
    early: int
    unpaired: int
    last_deliver: NDArray[np.int64] = field(default_factory=_NO_CYCLES.copy)
    by_vcpu: Mapping[int, OfVcpu] = field(default_factory=dict)


def cycles_of(storm: Storm, routes: Sequence[Route]) -> Cycles:
    """S, D and R of a storm, computed only from the guest's own stamps."""
    by_vcpu: dict[int, OfVcpu] = {}
    last: list[NDArray[np.int64]] = []
    unpaired = 0
    for route in routes:
        sends = storm.sends_of(route.sender)
        send_tsc = sends["send_tsc"].astype(np.int64)
        ack_tsc = sends["ack_tsc"].astype(np.int64)
        by_vcpu[route.sender] = replace(
            by_vcpu.get(route.sender, OfVcpu()),
            send=sends["sent_tsc"].astype(np.int64) - send_tsc,
            round_trip=(ack_tsc - send_tsc)[ack_tsc != 0],
        )
        handlers = []
        for target in route.targets:
            handled = storm.receipts[target]["handler_tsc"].astype(np.int64)
            pairing = pair_receipts(send_tsc, handled)
            handler = taken(handled, pairing.receipt_of_send)
            deliver = (handler - send_tsc)[handler != ABSENT]
            by_vcpu[target] = replace(by_vcpu.get(target, OfVcpu()), deliver=deliver)
            handlers.append(handler)
            unpaired += pairing.unpaired
        if len(handlers) > 1:
            everywhere = np.all([handler != ABSENT for handler in handlers], axis=0)
            last.append((np.max(handlers, axis=0) - send_tsc)[everywhere])
    deliver = np.concatenate([by_vcpu[t].deliver for route in routes for t in route.targets])
    return Cycles(
        send=np.concatenate([by_vcpu[route.sender].send for route in routes]),
        deliver=deliver,
        round_trip=np.concatenate([by_vcpu[route.sender].round_trip for route in routes]),
        early=int(np.count_nonzero(deliver <= 0)),
        unpaired=unpaired,
        last_deliver=np.concatenate([_NO_CYCLES, *last]),
        by_vcpu=dict(sorted(by_vcpu.items())) if len(routes) > 1 or last else {},
    )


@dataclass(frozen=True)
class Waited:
    """What sharing CPUs did in one recorded storm.

    Attributes:
        waiting: the waiting in the IPIs; None if it is not known.
        names: the threads in it, by thread id.
        switched_out_ns: see recording.row.Overcommit.
        run_delay_ns: likewise; None if the kernel does not report it.
    """

    waiting: Waiting | None
    names: Mapping[int, NamedThread]
    switched_out_ns: int
    run_delay_ns: int | None


@dataclass(frozen=True)
class HostSide:
    """Host data of one recorded repetition between its first and last measured send.

    Attributes:
        spans: one row for each send and target.
        exits: the exits of the sender and of each target.
        interrupts: the increases of rows of /proc/interrupts, including the warm-up; None if
            the file cannot be read.
        waited: None unless the scenario is overcommitted.
    """

    spans: Spans
    exits: Sequence[ExitTable]
    interrupts: InterruptDelta | None
    waited: Waited | None = None


@dataclass(frozen=True)
class Repetition:
    """One storm, reduced to the data that the row needs.

    Attributes:
        order: the number of the repetition in the run.
        seen: host events per kind and vCPU, shape (kinds, n_vcpus); None with probes off.
        uncounted: the events that were not attached; `seen` says nothing about them.
        watched: host data; None if the repetition was not recorded.
        twins: the distances of two copies' stamps of the same events, by kind; empty unless the
            mode was EVIDENCE.
        stats: per vCPU, the increases of KVM's counters; None for the reason `no_stats`.
        as_asked: the share of handler entries that found their vCPU in the requested state;
            None if the guest does not check.
        acknowledged: sends to each vCPU that did not time out.
    """

    mode: Mode
    cycles: Cycles
    n_vcpus: int
    sent: int
    handled: tuple[int, ...]
    timed_out: int
    stats: tuple[Mapping[str, int], ...] | None
    seen: NDArray[np.int64] | None = None
    watched: HostSide | None = None
    order: int = 0
    as_asked: float | None = None
    no_stats: str = NO_STATS_FD
    twins: Mapping[Kind, TwinDistance] = field(default_factory=dict)
    uncounted: frozenset[Kind] = frozenset()
    acknowledged: tuple[int, ...] = ()


def reduce_storm(
    storm: Storm,
    routes: Sequence[Route],
    mode: Mode,
    watched: HostSide | None = None,
    *,
    seen: NDArray[np.int64] | None = None,
    uncounted: frozenset[Kind] = frozenset(),
    twins: Mapping[Kind, TwinDistance] | None = None,
    order: int = 0,
) -> Repetition:
    """Reduce a storm to the data for its scenario's row."""
    return Repetition(
        mode=mode,
        cycles=cycles_of(storm, routes),
        n_vcpus=len(storm.handled),
        sent=len(storm.sends),
        handled=storm.handled,
        timed_out=int(np.count_nonzero(storm.sends["ack_tsc"] == 0)),
        stats=_stats(storm),
        no_stats=NO_STATS_FD if storm.start is not None else FOREIGN_STATS,
        seen=seen,
        uncounted=uncounted,
        watched=watched,
        order=order,
        as_asked=storm.as_asked,
        twins=twins or {},
        acknowledged=_acknowledged(storm, routes),
    )


def _acknowledged(storm: Storm, routes: Sequence[Route]) -> tuple[int, ...]:
    """The sends to each vCPU that did not time out."""
    counts = [0] * len(storm.handled)
    for route in routes:
        in_time = int(np.count_nonzero(storm.sends_of(route.sender)["ack_tsc"]))
        for target in route.targets:
            counts[target] += in_time
    return tuple(counts)


def _stats(storm: Storm) -> tuple[dict[str, int], ...] | None:
    """The increases of KVM's counters of each vCPU."""
    if storm.start is None or storm.end is None:
        return None
    if storm.start.stats is None or storm.end.stats is None:
        return None
    return tuple(
        {name: value - start[name] for name, value in end.items()}
        for start, end in zip(storm.start.stats, storm.end.stats, strict=True)
    )


@dataclass(frozen=True)
class Measured:
    """One scenario's repetitions, in the order in which they ran.

    Attributes:
        kvm_exit_fires: kvm_exit fired at some time in this run. Where it did not fire, there
            was then no exit.
        cpus: the host CPU of each vCPU; None if they are not pinned.
        left_out: the events that were not traced, and why.
    """

    scenario: Scenario
    targets: tuple[int, ...]
    pace_cycles: int
    warmup: int
    bound_cycles: int
    repetitions: tuple[Repetition, ...]
    notes: tuple[str, ...] = field(default=())
    kvm_exit_fires: bool = False
    cpus: tuple[int, ...] | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def routes(self) -> tuple[Route, ...]:
        """The senders, and the targets of each."""
        return routes_of(self.scenario.pattern, self.targets)

    def of(self, mode: Mode) -> tuple[Repetition, ...]:
        """The repetitions of one mode."""
        return tuple(r for r in self.repetitions if r.mode == mode)

    @property
    def headline(self) -> tuple[Repetition, ...]:
        """The repetitions for the row's timings: the untraced ones, or all if there is none."""
        return self.of(Mode.OFF) or self.repetitions

    @property
    def proving(self) -> tuple[Repetition, ...]:
        """The repetitions in which all events were recorded, or all if there is none."""
        return self.of(Mode.EVIDENCE) or self.repetitions
