# SPDX-License-Identifier: Apache-2.0
"""The sender's side of each IPI: what KVM did while the sending instruction ran."""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ipitrace.correlate.events import EventIndex, Events, Keep, count_in, earliest, first_in
from ipitrace.correlate.paths import classify, path_of_exits, proves_alone
from ipitrace.correlate.stamps import ABSENT, NEVER, Stamps, absent_last
from ipitrace.correlate.trace import GuestSide, StormTrace
from ipitrace.words.events import Kind
from ipitrace.words.paths import IpiPath
from ipitrace.words.stages import ICR_WRITES

_T = TypeVar("_T", np.int64, np.int8)
_FASTPATHS = tuple(kind for kind in Kind if kind.name.lower().startswith("handle_fastpath"))
# ICR bits 10:8 say how to deliver; 0 is fixed, 1 lowest priority, and the others carry
# no vector (SDM vol. 3A, 11.6.1).
_VECTOR_AND_MODE = 0x6FF
_ICR_HIGH = 0x310
_WRITTEN = 1  # detail of kvm_apic; of kvm_msr with bit 1 clear: no exception


def is_ipi_with(vector: int) -> Keep:
    """Which kvm_apic_ipi carry the vector."""
    return lambda e: np.asarray((e["word"] & np.uint32(_VECTOR_AND_MODE)) == vector)


class SenderSide:
    """What is the same for all targets of a send; every array has shape (n sends,).

    Attributes:
        ipi: kvm_apic_ipi.
        icr_write: the ICR write as kvm_msr or kvm_apic tells it.
        exit: the kvm_exit during which KVM took the IPI on.
        entry: the kvm_entry that ended it.
        first_event: the earliest of what the send made KVM do.
        began: the earliest of it that surely came before any target was told.
        exits: kvm_exit of the sender in the window, for whatever reason.
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

        accepts = (Kind.KVM_APIC_ACCEPT_IRQ, Kind.KVM_APICV_ACCEPT_IRQ)
        self.ipi = first_in(
            events.stamps(vcpu, [Kind.KVM_APIC_IPI], is_ipi_with(vector)), low, done
        )
        self.icr_write = first_in(events.stamps(vcpu, ICR_WRITES, is_icr_write), low, done)
        hypercall = first_in(events.stamps(vcpu, [Kind.KVM_HYPERCALL]), low, done)
        incomplete = first_in(events.stamps(vcpu, [Kind.KVM_AVIC_INCOMPLETE_IPI]), low, done)
        accept = first_in(events.stamps(vcpu, accepts, has_vector), low, done)
        seen = earliest(self.ipi, self.icr_write, hypercall, incomplete, accept)
        exits = events.of(vcpu, Kind.KVM_EXIT)
        entries = events.of(vcpu, Kind.KVM_ENTRY).tsc
        exit_path = path_of_exits(exits["detail"], exits["word"], exits["arg"])
        at = _carrying_exit(exits.tsc, exit_path, entries, guest, seen, complete=trace.complete)
        self.exit = _at(exits.tsc, at, ABSENT)
        self.entry = _entry_that_ends(exits.tsc, at, entries, guest.until)
        self.first_event = earliest(seen, self.exit)
        told_first = np.where((seen == ABSENT) | (self.exit <= seen), self.exit, ABSENT)
        self.began = earliest(self.ipi, hypercall, incomplete, told_first)
        self.exits = count_in(exits.tsc, low, guest.until)
        fastpath = first_in(events.stamps(vcpu, _FASTPATHS), seen, done)
        provable = exits.tsc[exit_path != IpiPath.UNKNOWN]
        self.path = classify(
            exit_path=_at(exit_path, at, IpiPath.UNKNOWN),
            any_exit=first_in(provable, low, done) != ABSENT,
            hypercall=hypercall != ABSENT,
            avic_incomplete=incomplete != ABSENT,
            fastpath=(fastpath != ABSENT) & (seen != ABSENT),
            kvm_took_it=seen != ABSENT,
            exits_fire=trace.exits_fire,
            complete=trace.complete,
        )


def _at(values: NDArray[_T], at: NDArray[np.int64], default: int) -> NDArray[_T]:
    """`values[at]`, and the default where `at` is negative."""
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
    """Which exit each send caused, -1 where none is seen.

    It is the one that was open (no entry since) when KVM was seen to take the IPI on. KVM's
    fastpaths ran before kvm_exit was told on SVM until 2023: then it is the one that
    follows without an entry between; but where events were lost that proves nothing.
    Without any sign of KVM it is an exit that can only be an ICR write.
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
    """The entry after exit number `at`, ABSENT where another exit comes first."""
    if not len(exits):
        return np.full(len(at), ABSENT)
    next_exit = np.append(exits[1:], NEVER)[at]
    entry = first_in(entries, exits[at] + 1, until)
    return np.where((at >= 0) & (absent_last(entry) <= next_exit), entry, ABSENT)


def _last_before(tsc: Stamps, when: Stamps) -> Stamps:
    """The last stamp at or before `when`, ABSENT where there is none."""
    if not len(tsc):
        return np.full(len(when), ABSENT)
    at = np.searchsorted(tsc, when, side="right") - 1
    return _at(tsc, at, ABSENT)


def _next_after(tsc: Stamps, when: Stamps) -> Stamps:
    """The first stamp after `when`, NEVER where there is none."""
    return np.append(tsc, NEVER)[np.searchsorted(tsc, when, side="right")]
