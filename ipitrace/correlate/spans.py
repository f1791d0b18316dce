# SPDX-License-Identifier: Apache-2.0
"""Spans: the time of each stage for each IPI and target.

An IPI's window reaches from its send to the next one. Within the window, the sender's
stages are found among the events of the sender's thread, and a target's stages among
those of the target's thread, by kind, vector and time. All searches are
binary searches of whole columns (numpy.searchsorted).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from ipitrace.correlate.events import EventIndex, Events
from ipitrace.correlate.sender import SenderSide, is_ipi_with
from ipitrace.correlate.stamps import ABSENT
from ipitrace.correlate.target import target_side
from ipitrace.correlate.trace import GuestSide, StormTrace
from ipitrace.correlate.weights import WEIGHED, programs_passed
from ipitrace.words.events import Kind
from ipitrace.words.paths import IpiPath
from ipitrace.words.stages import Stage

__all__ = ["Spans", "StormTrace", "correlate", "correlate_part", "joined"]


@dataclass(frozen=True)
class Spans:
    """One row for each send and target; rows of one send follow each other.

    Attributes:
        seq: the send's number; shape (n,), as for all others except `tsc`.
        sender: the vCPU that sent.
        target: the vCPU that handles.
        path: an IpiPath.
        tsc: guest TSC of each stage, ABSENT if it was not seen; shape (n, len(Stage)).
        sender_exits: kvm_exit of the sender's thread in the IPI's window; ABSENT if
            kvm_exit was never seen in this VM, because a count of 0 then means nothing.
        target_exits: the same for the target's thread.
        suspect: the guest's TSC offset changed around the span.
        unmatched_events: events with the IPIs' vector that belong to no span, by tracepoint.
        passed: see weights.programs_passed(); shape (n, len(Stage), len(WEIGHED) + 1) where only
            the events of the stages were traced, else None.
    """

    seq: NDArray[np.int64]
    sender: NDArray[np.int64]
    target: NDArray[np.int64]
    path: NDArray[np.int8]
    tsc: NDArray[np.int64]
    sender_exits: NDArray[np.int64]
    target_exits: NDArray[np.int64]
    suspect: NDArray[np.bool_]
    unmatched_events: dict[str, int]
    passed: NDArray[np.uint8] | None = None

    @property
    def unmatched_ipis(self) -> int:
        """Number of spans without any host event of the sender, except those on path EXITLESS."""
        host = [Stage.SENDER_EXIT, Stage.IPI, Stage.ACCEPT, Stage.APICV_ACCEPT, Stage.ICR_WRITE]
        unseen = (self.tsc[:, host] == ABSENT).all(axis=1)
        return int(np.count_nonzero(unseen & (self.path != IpiPath.EXITLESS)))

    def stage(self, stage: Stage) -> NDArray[np.int64]:
        """One stage's column."""
        return self.tsc[:, stage]


def correlate(trace: StormTrace) -> Spans:
    """Find each IPI's stages; StormTrace describes the input and Spans the output."""
    return correlate_part(trace, GuestSide.of(trace))


def joined(parts: Sequence[Spans]) -> Spans:
    """The spans of several senders of one storm, one after the other."""
    if len(parts) == 1:
        return parts[0]
    unmatched: dict[str, int] = {}
    for part in parts:
        for name, n in part.unmatched_events.items():
            unmatched[name] = unmatched.get(name, 0) + n
    passed = [part.passed for part in parts if part.passed is not None]
    columns = {
        field.name: np.concatenate([getattr(part, field.name) for part in parts])
        for field in fields(Spans)
        if field.name not in {"unmatched_events", "passed"}
    }
    return Spans(
        **columns,
        unmatched_events=unmatched,
        passed=np.concatenate(passed) if passed else None,
    )


def correlate_part(trace: StormTrace, guest: GuestSide) -> Spans:
    """As correlate(), for some sends; every event must lie in one of their windows or in none."""
    events = EventIndex(trace.events, trace.event_tsc)
    sent = SenderSide(trace, guest, events)
    n, m = len(guest.send), len(trace.targets)
    tsc = np.empty((n, m, len(Stage)), np.int64)
    target_exits = np.empty((n, m), np.int64)
    passed = np.zeros((n, m, len(Stage), len(WEIGHED) + 1), np.uint8) if trace.stages_only else None
    for column in range(m):
        rows = target_side(trace, guest, sent, events, column)
        tsc[:, column] = rows.tsc
        target_exits[:, column] = rows.exits
        if passed is not None:
            passed[:, column] = programs_passed(
                events, guest.low, rows.tsc, sender=trace.sender, target=trace.targets[column]
            )
    return Spans(
        seq=np.repeat(guest.seq, m),
        sender=np.full(n * m, trace.sender, np.int64),
        target=np.tile(np.array(list(trace.targets), np.int64), n),
        path=np.repeat(sent.path, m),
        tsc=tsc.reshape(n * m, len(Stage)),
        sender_exits=_counted(np.repeat(sent.exits, m), trace),
        target_exits=_counted(target_exits.reshape(n * m), trace),
        suspect=np.repeat(_suspect(guest.low, guest.until, trace.suspect), m),
        unmatched_events=_unmatched(trace, events, sent, tsc),
        passed=None if passed is None else passed.reshape(n * m, len(Stage), -1),
    )


def _counted(exits: NDArray[np.int64], trace: StormTrace) -> NDArray[np.int64]:
    return exits if trace.exits_fire else np.full_like(exits, ABSENT)


def _suspect(
    low: NDArray[np.int64], until: NDArray[np.int64], intervals: Iterable[tuple[int, int]]
) -> NDArray[np.bool_]:
    """Which windows overlap an interval; the intervals include both ends."""
    touched = np.zeros(len(low), np.bool_)
    for start, end in intervals:
        touched |= (low <= end) & (until > start)
    return touched


def _unmatched(
    trace: StormTrace, events: EventIndex, sent: SenderSide, tsc: NDArray[np.int64]
) -> dict[str, int]:
    """The number of events with the vector that belong to no span, by tracepoint."""

    def has_vector(e: Events) -> NDArray[np.bool_]:
        return np.asarray(e["detail"] == trace.vector)

    sender, targets = [trace.sender], trace.targets
    carrying: tuple[
        tuple[Kind, Sequence[int], Callable[[Events], NDArray[np.bool_]], NDArray[np.int64]], ...
    ] = (
        (Kind.KVM_APIC_IPI, sender, is_ipi_with(trace.vector), sent.apic_ipi),
        *((kind, sender, has_vector, taken) for kind, taken in sent.hv.items()),
        (Kind.KVM_APIC_ACCEPT_IRQ, sender, has_vector, tsc[..., Stage.ACCEPT]),
        (Kind.KVM_APICV_ACCEPT_IRQ, sender, has_vector, tsc[..., Stage.APICV_ACCEPT]),
        (Kind.KVM_INJ_VIRQ, targets, has_vector, tsc[..., Stage.INJECT]),
    )
    unmatched = {}
    for kind, vcpus, keep, taken in carrying:
        groups = [events.of(vcpu, kind) for vcpu in vcpus]
        total = sum(int(np.count_nonzero(keep(group))) for group in groups)
        left = total - int(np.count_nonzero(taken != ABSENT))
        if left > 0:
            unmatched[kind.name.lower()] = left
    return unmatched
