# SPDX-License-Identifier: Apache-2.0
"""One storm, reduced to the data for its scenario's row."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

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
from ipitrace.words.scenarios import Mode, Scenario
from ipitrace.words.threads import NamedThread

NO_STATS_FD = "this KVM has no KVM_GET_STATS_FD"
FOREIGN_STATS = "only the VMM of a vCPU can read its statistics from KVM"


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
    """

    send: NDArray[np.int64]
    deliver: NDArray[np.int64]
    round_trip: NDArray[np.int64]
    early: int
    unpaired: int


def cycles_of(storm: Storm, targets: Iterable[int]) -> Cycles:
    """S, D and R of a storm, computed only from the guest's own stamps."""
    send_tsc = storm.sends["send_tsc"].astype(np.int64)
    ack_tsc = storm.sends["ack_tsc"].astype(np.int64)
    parts, unpaired = [], 0
    for target in targets:
        handled = storm.receipts[target]["handler_tsc"].astype(np.int64)
        pairing = pair_receipts(send_tsc, handled)
        handler = taken(handled, pairing.receipt_of_send)
        parts.append((handler - send_tsc)[handler != ABSENT])
        unpaired += pairing.unpaired
    deliver = np.concatenate(parts)
    return Cycles(
        send=storm.sends["sent_tsc"].astype(np.int64) - send_tsc,
        deliver=deliver,
        round_trip=(ack_tsc - send_tsc)[ack_tsc != 0],
        early=int(np.count_nonzero(deliver <= 0)),
        unpaired=unpaired,
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
        watched: host data; None if the repetition was not recorded.
        twins: the distances of two copies' stamps of the same events, by kind; empty unless the
            mode was EVIDENCE.
        stats: per vCPU, the increases of KVM's counters; None for the reason `no_stats`.
        as_asked: the share of handler entries that found their vCPU in the requested state;
            None if the guest does not check.
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


def reduce_storm(
    storm: Storm,
    targets: Sequence[int],
    mode: Mode,
    watched: HostSide | None = None,
    *,
    seen: NDArray[np.int64] | None = None,
    twins: Mapping[Kind, TwinDistance] | None = None,
    order: int = 0,
) -> Repetition:
    """Reduce a storm to the data for its scenario's row."""
    return Repetition(
        mode=mode,
        cycles=cycles_of(storm, targets),
        n_vcpus=len(storm.handled),
        sent=len(storm.sends),
        handled=storm.handled,
        timed_out=int(np.count_nonzero(storm.sends["ack_tsc"] == 0)),
        stats=_stats(storm),
        no_stats=NO_STATS_FD if storm.start is not None else FOREIGN_STATS,
        seen=seen,
        watched=watched,
        order=order,
        as_asked=storm.as_asked,
        twins=twins or {},
    )


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
