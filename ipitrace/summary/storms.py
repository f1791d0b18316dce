# SPDX-License-Identifier: Apache-2.0
"""One storm reduced to what its scenario's row is made of."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ipitrace.correlate.exits import ExitTable
from ipitrace.correlate.pairing import pair_receipts, taken
from ipitrace.correlate.spans import Spans
from ipitrace.correlate.stamps import ABSENT
from ipitrace.host.interrupts import InterruptDelta
from ipitrace.storm.driver import Storm
from ipitrace.words.scenarios import Mode, Scenario

NO_STATS_FD = "this KVM has no KVM_GET_STATS_FD"
FOREIGN_STATS = "KVM tells a vCPU's statistics to its own VMM alone"


@dataclass(frozen=True)
class Cycles:
    """What one storm measured; arrays of cycles in the order sent.

    Attributes:
        send: S of every measured send.
        deliver: D of every handler entry, on all targets.
        round_trip: R of every send acknowledged in time.
        early: handler entries that seem to come before their send; with one TSC for all
            vCPUs there must be none.
        unpaired: handler entries that belong to no send.
    """

    send: NDArray[np.int64]
    deliver: NDArray[np.int64]
    round_trip: NDArray[np.int64]
    early: int
    unpaired: int


def cycles_of(storm: Storm, targets: Iterable[int]) -> Cycles:
    """S, D and R of a storm, from the guest's own stamps alone."""
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
class HostSide:
    """What the host showed of one recorded repetition between its first and last measured send.

    Attributes:
        spans: one row for each send and target.
        exits: the exits of each vCPU concerned.
        interrupts: what rows of /proc/interrupts moved by, warm-up included; None where
            it cannot be read.
    """

    spans: Spans
    exits: Sequence[ExitTable]
    interrupts: InterruptDelta | None


@dataclass(frozen=True)
class Repetition:
    """One storm, reduced to what the row needs.

    Attributes:
        order: which fresh guest of the run it was.
        seen: host events per kind and vCPU, shape (kinds, n_vcpus); None with probes off.
        watched: only of recorded repetitions.
        stats: per vCPU, what KVM's counters moved by; None for the reason `no_stats`.
        as_asked: the share of handler entries that found their vCPU in the state asked for;
            None where the guest does not look.
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


def reduce_storm(
    storm: Storm,
    targets: Sequence[int],
    mode: Mode,
    watched: HostSide | None = None,
    *,
    seen: NDArray[np.int64] | None = None,
    order: int = 0,
) -> Repetition:
    """Keep of a storm what its scenario's row is made of."""
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
    )


def _stats(storm: Storm) -> tuple[dict[str, int], ...] | None:
    """What KVM's counters of each vCPU moved by."""
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
    """One scenario's repetitions, in the order run.

    Attributes:
        kvm_exit_fires: it did in this run, at some time; so where it did not fire, there
            was no exit.
    """

    scenario: Scenario
    targets: tuple[int, ...]
    pace_cycles: int
    warmup: int
    bound_cycles: int
    repetitions: tuple[Repetition, ...]
    notes: tuple[str, ...] = field(default=())
    kvm_exit_fires: bool = False

    def of(self, mode: Mode) -> tuple[Repetition, ...]:
        """The repetitions of one mode."""
        return tuple(r for r in self.repetitions if r.mode == mode)

    @property
    def headline(self) -> tuple[Repetition, ...]:
        """The repetitions the row is made of: the recorded ones, or all if none was."""
        return self.of(Mode.FULL) or self.repetitions
