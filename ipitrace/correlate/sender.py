# SPDX-License-Identifier: Apache-2.0
"""The sender's side of each IPI: KVM's events during the sending instruction."""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ipitrace.correlate.events import EventIndex, Events, Keep, count_in, earliest, first_in
from ipitrace.correlate.paths import (
    classify,
    is_sending_access,
    may_send,
    path_of_avic_cause,
    path_of_exits,
    proves_alone,
)
from ipitrace.correlate.stamps import ABSENT, NEVER, Stamps, absent_last
from ipitrace.correlate.trace import GuestSide, StormTrace
from ipitrace.words.events import Kind
from ipitrace.words.paths import IpiPath
from ipitrace.words.stages import HV_SENDS, ICR_WRITES

_T = TypeVar("_T", np.int64, np.int8)
_FASTPATHS = tuple(kind for kind in Kind if kind.name.lower().startswith("handle_fastpath"))
# ICR bits 10:8 are the delivery mode: 0 is fixed, 1 lowest priority; the other modes have
# no vector (SDM vol. 3A, 11.6.1).
_VECTOR_AND_MODE = 0x6FF
_ICR_HIGH = 0x310
_WRITTEN = 1  # detail of kvm_apic; of kvm_msr with bit 1 clear: no exception


def is_ipi_with(vector: int) -> Keep:
    """A filter of kvm_apic_ipi events with this vector."""
    return lambda e: np.asarray((e["word"] & np.uint32(_VECTOR_AND_MODE)) == vector)


class SenderSide:
    """Data common to all targets of a send; every array has shape (n sends,).

    Attributes:
        apic_ipi: kvm_apic_ipi.
        hv: kvm_hv_send_ipi and kvm_hv_send_ipi_ex, by kind.
        ipi: the first of these.
        icr_write: the ICR write as reported by kvm_msr or kvm_apic.
        exit: the kvm_exit of the exit in which KVM handled the IPI.
        entry: the kvm_entry that ended this exit.
        first_event: the earliest KVM event that the send caused.
        began: the earliest of these events that is certain to precede any notification of a
            target.
        exits: kvm_exit of the sender in the window, for any reason.
        path: an IpiPath.
    """

    def __init__(self, trace: StormTrace, guest: GuestSide, events: EventIndex) -> None:
        vcpu, vector = trace.sender, trace.vector
        low, done = guest.low, guest.done

        def is_icr_write(e: Events) -> NDArray[np.bool_]:
            low_half = e["arg"].astype(np.uint32) & np.uint32(_VECTOR_AND_MODE)
            return np.asarray(
                (low_half == vector) & (e["word"] != _ICR_HIGH) & (e["detail"] == _WRITTEN)
            )

        def has_vector(e: Events) -> NDArray[np.bool_]:
            return np.asarray(e["detail"] == vector)

        def sends_by_access(e: Events) -> NDArray[np.bool_]:
            return is_sending_access(e["word"], e["detail"])

        def sends_by_vmgexit(e: Events) -> NDArray[np.bool_]:
            return may_send(e["word"], e["arg"])

        accepts = (Kind.KVM_APIC_ACCEPT_IRQ, Kind.KVM_APICV_ACCEPT_IRQ)
        self.apic_ipi = first_in(
            events.stamps(vcpu, [Kind.KVM_APIC_IPI], is_ipi_with(vector)), low, done
        )
        self.hv = {
            kind: first_in(events.stamps(vcpu, [kind], has_vector), low, done) for kind in HV_SENDS
        }
        hv_hypercall = earliest(*self.hv.values())
        self.ipi = earliest(self.apic_ipi, hv_hypercall)
        self.icr_write = first_in(events.stamps(vcpu, ICR_WRITES, is_icr_write), low, done)
        hypercall = first_in(events.stamps(vcpu, [Kind.KVM_HYPERCALL]), low, done)
        failures = events.of(vcpu, Kind.KVM_AVIC_INCOMPLETE_IPI)
        incomplete = first_in(failures.tsc, low, done)
        unaccelerated = first_in(
            events.stamps(vcpu, [Kind.KVM_AVIC_UNACCELERATED_ACCESS], sends_by_access), low, done
        )
        vmgexit = first_in(
            events.stamps(vcpu, [Kind.KVM_VMGEXIT_ENTER], sends_by_vmgexit), low, done
        )
        accept = first_in(events.stamps(vcpu, accepts, has_vector), low, done)
        seen = earliest(self.ipi, self.icr_write, hypercall, incomplete, unaccelerated, accept)
        exits = events.of(vcpu, Kind.KVM_EXIT)
        entries = events.of(vcpu, Kind.KVM_ENTRY).tsc
        exit_path = path_of_exits(exits["detail"], exits["word"], exits["arg"])
        at = _carrying_exit(exits.tsc, exit_path, entries, guest, seen, complete=trace.complete)
        self.exit = _at(exits.tsc, at, ABSENT)
        self.entry = _entry_that_ends(exits.tsc, at, entries, guest.until)
        self.first_event = earliest(seen, self.exit)
        exit_first = np.where((seen == ABSENT) | (self.exit <= seen), self.exit, ABSENT)
        self.began = earliest(self.ipi, hypercall, incomplete, unaccelerated, exit_first)
        self.exits = count_in(exits.tsc, low, guest.until)
        fastpath = first_in(events.stamps(vcpu, _FASTPATHS), seen, done)
        provable = exits.tsc[exit_path != IpiPath.UNKNOWN]
        if trace.stages_only:
            self.path = np.full(len(low), IpiPath.UNKNOWN, np.int8)
            return
        self.path = classify(
            exit_path=_at(exit_path, at, IpiPath.UNKNOWN),
            any_exit=first_in(provable, low, done) != ABSENT,
            hypercall=hypercall != ABSENT,
            hv_hypercall=hv_hypercall != ABSENT,
            avic_incomplete=_at(
                path_of_avic_cause(failures["word"]),
                np.where(incomplete == ABSENT, -1, np.searchsorted(failures.tsc, low)),
                IpiPath.UNKNOWN,
            ),
            unaccelerated=unaccelerated != ABSENT,
            vmgexit=vmgexit != ABSENT,
            fastpath=(fastpath != ABSENT) & (seen != ABSENT),
            kvm_took_it=seen != ABSENT,
            exits_fire=trace.exits_fire,
            complete=trace.complete,
        )


def _at(values: NDArray[_T], at: NDArray[np.int64], default: int) -> NDArray[_T]:
    """`values[at]`, or the default if `at` is negative."""
    if not len(values):
        return np.full(len(at), default, values.dtype)
    return np.where(at < 0, values.dtype.type(default), values.take(at, mode="clip"))


def _carrying_exit(
    exits: Stamps,
    exit_path: NDArray[np.int8],
    entries: Stamps,
    guest: GuestSide,
    seen: Stamps,
    *,
    complete: bool,
) -> NDArray[np.int64]:
    """The index of the exit that each send caused; -1 if none was seen.

    It is the exit that was open (no entry since) at the first KVM event for the IPI. Until
    2023, KVM's fastpaths on SVM ran before kvm_exit fired: it is then the exit that follows
    without an entry in between. If events were lost, this proves nothing. Without any KVM
    event for the IPI, it is an exit that can only be an ICR write.
    """
    none = np.full(len(seen), -1)
    if not len(exits):
        return none
    low, done = guest.low, guest.done
    before = np.searchsorted(exits, seen, side="right") - 1
    start = exits.take(before, mode="clip")
    is_open = (before >= 0) & (start >= low) & (_last_before(entries, seen) < start)
    found = np.where(is_open, before, none)
    if complete:
        after = before + 1
        stamp = exits.take(after, mode="clip")
        follows = (after < len(exits)) & (stamp < done) & (_next_after(entries, seen) > stamp)
        proves = exit_path.take(after, mode="clip") != IpiPath.UNKNOWN
        found = np.where(~is_open & follows & proves, after, found)
    alone = np.flatnonzero(proves_alone(exit_path))
    if len(alone):
        first = np.searchsorted(exits[alone], low)
        stamp = exits[alone].take(first, mode="clip")
        inside = (first < len(alone)) & (stamp < done)
        unseen = np.where(inside, alone.take(first, mode="clip"), none)
    else:
        unseen = none
    return np.where(seen == ABSENT, unseen, found)


def _entry_that_ends(
    exits: Stamps, at: NDArray[np.int64], entries: Stamps, until: Stamps
) -> Stamps:
    """The entry after exit number `at`; ABSENT if another exit comes first."""
    if not len(exits):
        return np.full(len(at), ABSENT)
    next_exit = np.append(exits[1:], NEVER)[at]
    entry = first_in(entries, exits[at] + 1, until)
    return np.where((at >= 0) & (absent_last(entry) <= next_exit), entry, ABSENT)


def _last_before(tsc: Stamps, when: Stamps) -> Stamps:
    """The last stamp at or before `when`; ABSENT if there is none."""
    if not len(tsc):
        return np.full(len(when), ABSENT)
    at = np.searchsorted(tsc, when, side="right") - 1
    return _at(tsc, at, ABSENT)


def _next_after(tsc: Stamps, when: Stamps) -> Stamps:
    """The first stamp after `when`; NEVER if there is none."""
    return np.append(tsc, NEVER)[np.searchsorted(tsc, when, side="right")]
