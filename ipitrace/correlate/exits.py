# SPDX-License-Identifier: Apache-2.0
"""VM exits inside the IPIs' windows: reason, duration, and the part of D they cover."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ipitrace.correlate.events import EventIndex
from ipitrace.correlate.exit_programs import (
    IN_DELIVER,
    events_inside,
    programs_in_deliver,
    programs_inside,
)
from ipitrace.correlate.spans import Spans, StormTrace
from ipitrace.correlate.stamps import ABSENT, NEVER
from ipitrace.words.events import Kind
from ipitrace.words.stages import Stage

_VCPU_BITS = 32


@dataclass(frozen=True)
class ExitTable:
    """The exits of one vCPU in one storm; arrays of shape (n,).

    Attributes:
        vcpu: the vCPU.
        isa: the field of kvm_exit: 1 VMX, 2 SVM, 0 unknown.
        reason: the raw exit reason.
        cycles: from kvm_exit to the kvm_entry that ended it; ABSENT for unpaired exits.
        in_deliver_cycles: the part of the exit between an IPI's send and its handler, summed
            over all IPIs that it overlaps, and over all targets. 0 for unpaired exits, whose
            end is not known.
        signature: which events of the stages happened in the exit: bit k is WEIGHED[k]; and
            IN_DELIVER. Exits of one reason have few signatures.
        passed: ipitrace's programs by which `cycles` is too long; shape (n, len(WEIGHED) + 2):
            by kind of event, then programs without a record, then how often the part of a
            program that follows its stamp is not included. None unless only the events of the
            stages were traced.
        in_deliver_passed: the same for `in_deliver_cycles`.
    """

    vcpu: int
    isa: NDArray[np.uint16]
    reason: NDArray[np.uint32]
    cycles: NDArray[np.int64]
    in_deliver_cycles: NDArray[np.int64]
    signature: NDArray[np.uint32]
    passed: NDArray[np.int32] | None = None
    in_deliver_passed: NDArray[np.int32] | None = None


def exit_tables(trace: StormTrace, spans: Spans) -> list[ExitTable]:
    """The exits of each sender and of each target, inside the measured windows."""
    senders = np.unique(spans.sender).tolist() or [trace.sender]
    vcpus = dict.fromkeys([*senders, *trace.targets])
    events = EventIndex(trace.events, trace.event_tsc)
    return [_exit_table(trace, spans, events, vcpu) for vcpu in vcpus]


def _exit_table(trace: StormTrace, spans: Spans, events: EventIndex, vcpu: int) -> ExitTable:
    own = trace.events["vcpu"] == vcpu
    exits = _sorted(trace, own & (trace.events["kind"] == Kind.KVM_EXIT))
    exit_tsc = trace.event_tsc[exits]
    records = trace.events[exits]
    entry = _ending_entry(exit_tsc, events.of(vcpu, Kind.KVM_ENTRY).tsc)
    end = np.where(entry == ABSENT, exit_tsc, entry)
    in_deliver = _overlap(spans, vcpu, exit_tsc, end)
    inside = programs_inside(events, vcpu, exit_tsc, end)
    return ExitTable(
        vcpu,
        records["detail"],
        records["word"],
        np.where(entry == ABSENT, ABSENT, entry - exit_tsc),
        in_deliver,
        events_inside(inside) | np.where(in_deliver > 0, IN_DELIVER, np.uint32(0)),
        inside if trace.stages_only else None,
        programs_in_deliver(spans, events, vcpu, (exit_tsc, end)),
    )


def _sorted(trace: StormTrace, chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
    index = np.flatnonzero(chosen)
    return index[np.argsort(trace.event_tsc[index], kind="stable")]


def _ending_entry(exit_tsc: NDArray[np.int64], entry_tsc: NDArray[np.int64]) -> NDArray[np.int64]:
    """The entry that ends each exit; ABSENT if another exit comes first.

    In Linux 5.8 to 5.12, KVM's fastpaths re-entered the guest without a kvm_entry: an exit can
    then follow an exit. An entry ends the last exit before it.
    """
    if not len(entry_tsc):
        return np.full(len(exit_tsc), ABSENT, np.int64)
    at = np.searchsorted(entry_tsc, exit_tsc, side="right")
    entry = np.append(entry_tsc, NEVER)[at]
    next_exit = np.append(exit_tsc[1:], NEVER)
    ends = (at < len(entry_tsc)) & (entry <= next_exit)
    return np.asarray(np.where(ends, entry, ABSENT), np.int64)


def _overlap(
    spans: Spans,
    vcpu: int,
    start: NDArray[np.int64],
    end: NDArray[np.int64],
) -> NDArray[np.int64]:
    """The part of each [start, end) that lies between sends and their handlers.

    A target's exits are compared with its own handlers. A sender's exits are compared with
    those of each target and summed, because D is counted once per target.
    """
    total = np.zeros(len(start), np.int64)
    pair = spans.sender << _VCPU_BITS | spans.target
    for one in np.unique(pair[(spans.sender == vcpu) | (spans.target == vcpu)]):
        own = pair == one
        send, handler = spans.tsc[own, Stage.SEND], spans.tsc[own, Stage.HANDLER]
        delivering = np.where(handler == ABSENT, 0, np.maximum(handler - send, 0))
        total += _covered(send, delivering, end) - _covered(send, delivering, start)
    return total


def _covered(
    start: NDArray[np.int64], length: NDArray[np.int64], until: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The total length of the intervals before each `until`; the intervals do not overlap."""
    if not len(start):
        return np.zeros(len(until), np.int64)
    # if clocks contradict each other, an interval may seem to reach into the next one
    length = np.minimum(length, np.append(np.diff(start), NEVER))
    before = np.concatenate([[0], np.cumsum(length)])
    at = np.searchsorted(start, until, side="right") - 1
    inside = np.clip(until - start[np.maximum(at, 0)], 0, length[np.maximum(at, 0)])
    return np.where(at < 0, 0, before[np.maximum(at, 0)] + inside)
