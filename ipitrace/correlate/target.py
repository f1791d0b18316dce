# SPDX-License-Identifier: Apache-2.0
"""A target's side of each IPI: its notification, and the events until its handler runs.

The order of host events among themselves is exact: a target's events for an IPI come after
the sender's events for it, without an allowance for the clock. Compared with the guest's
stamps there is an allowance: an event may seem to come after the handler by the clock's
error. This error is at most the error bound, and at most the time between the send and the
sender's first event.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ipitrace.correlate.events import EventIndex, Events, count_in, either, first_in, last_in
from ipitrace.correlate.paths import is_halt
from ipitrace.correlate.sender import SenderSide
from ipitrace.correlate.stamps import ABSENT, Stamps, absent_last
from ipitrace.correlate.trace import GuestSide, StormTrace
from ipitrace.words.events import Kind
from ipitrace.words.stages import HOST_INTERRUPTS, Stage

_OWN = (*HOST_INTERRUPTS, Kind.SCHED_SWITCH, Kind.KVM_VCPU_WAKEUP, Kind.KVM_EXIT, Kind.KVM_EOI)


@dataclass(frozen=True)
class TargetSide:
    """One target's rows: stamps of shape (n, len(Stage)), and numbers of exits of shape (n,)."""

    tsc: NDArray[np.int64]
    exits: NDArray[np.int64]


@dataclass(frozen=True)
class _Span:
    """The interval of host events that lead to the handler, [start, before); shape (n,) each.

    Attributes:
        notified: time of the sender's event for this target; ABSENT if none was seen.
        start: the same, or the begin of the window if none was seen.
        before: the handler's entry plus the clock's error, or the end of the window.
    """

    notified: Stamps
    start: Stamps
    before: Stamps

    def first(self, tsc: Stamps) -> Stamps:
        return first_in(tsc, self.start, self.before)


def target_side(
    trace: StormTrace, guest: GuestSide, sent: SenderSide, events: EventIndex, column: int
) -> TargetSide:
    """The rows of target number `column`: the sender's stages for it, and its own stages."""
    sender, target, vector = trace.sender, trace.targets[column], trace.vector
    handler, until = guest.handler[:, column], guest.until

    def has_vector(e: Events) -> NDArray[np.bool_]:
        return np.asarray(e["detail"] == vector)

    def to_target(e: Events) -> NDArray[np.bool_]:
        return np.asarray((e["detail"] == vector) & (e["word"] == trace.apic_id(target)))

    accept = first_in(
        events.stamps(sender, [Kind.KVM_APIC_ACCEPT_IRQ], to_target), guest.low, guest.done
    )
    posted = first_in(
        events.stamps(sender, [Kind.KVM_APICV_ACCEPT_IRQ], to_target), guest.low, guest.done
    )
    # not `posted`: on VMX this event may fire while the target already runs its handler
    notified = either(accept, sent.began)
    late = np.minimum(
        trace.bound_cycles,
        np.where(sent.first_event == ABSENT, trace.bound_cycles, sent.first_event - guest.send),
    )
    before = np.where(handler == ABSENT, until, np.minimum(handler + late + 1, until))
    way = _Span(notified, either(notified, guest.low), before)
    injections = events.stamps(target, [Kind.KVM_INJ_VIRQ], has_vector)
    inject = way.first(injections)
    eoi = first_in(events.stamps(target, [Kind.KVM_EOI], has_vector), way.start, until)
    lazy_eoi = first_in(
        events.stamps(target, [Kind.KVM_PV_EOI], has_vector), either(inject, handler, until), until
    )
    tsc = np.full((len(Stage), len(before)), ABSENT)
    tsc[Stage.SEND] = guest.send
    tsc[Stage.SENDER_EXIT] = sent.exit
    tsc[Stage.IPI] = sent.ipi
    tsc[Stage.ACCEPT] = accept
    tsc[Stage.APICV_ACCEPT] = posted
    tsc[Stage.KICK] = _kick(trace, guest, events, target, way)
    tsc[Stage.ICR_WRITE] = sent.icr_write
    tsc[Stage.SENDER_ENTRY] = sent.entry
    tsc[Stage.SENT] = guest.sent
    tsc[Stage.INJECT] = inject
    tsc[Stage.KVM_EOI] = either(eoi, lazy_eoi)
    tsc[Stage.HANDLER] = handler
    tsc[Stage.EOI] = guest.eoi[:, column]
    tsc[Stage.ACK] = guest.ack
    exits = events.of(target, Kind.KVM_EXIT)
    if target != sender:
        tsc[Stage.TARGET_INTERRUPT] = way.first(events.stamps(target, HOST_INTERRUPTS))
        tsc[Stage.SCHED_IN] = way.first(events.stamps(target, [Kind.SCHED_SWITCH], _came_in))
        tsc[Stage.WAKEUP] = way.first(events.stamps(target, [Kind.KVM_VCPU_WAKEUP]))
        entries = events.of(target, Kind.KVM_ENTRY).tsc
        tsc[Stage.TARGET_ENTRY] = entry = _entry(entries, exits.tsc, injections, way, until)
        ended = np.minimum(np.minimum(absent_last(inject), absent_last(entry)), before)
        tsc[Stage.TARGET_EXIT] = _exit(exits, way, ended)
    return TargetSide(tsc.T, count_in(exits.tsc, guest.low, until))


def _entry(entries: Stamps, exits: Stamps, injections: Stamps, way: _Span, until: Stamps) -> Stamps:
    """The entry that led to the handler.

    It is the entry after the last injection, without an exit in between. If no injection was
    seen, it is the last entry before the handler.
    """
    entry = last_in(entries, way.start, way.before)
    inject = last_in(injections, way.start, way.before)
    if (inject == ABSENT).all():
        return entry
    after = first_in(entries, inject, until)
    next_exit = first_in(exits, inject, until)
    after = np.where(absent_last(next_exit) < after, ABSENT, after)
    return np.where(inject == ABSENT, entry, after)


def _exit(exits: Events, way: _Span, ended: Stamps) -> Stamps:
    """The exit after which the interrupt could be injected, before `ended`.

    If the sender's events were not seen, the clock's error could move a HLT from before the
    send to after it. HLT exits are then excluded, because no interrupt causes one.
    """
    found = first_in(exits.tsc, way.start, ended)
    if (way.notified != ABSENT).all() or not len(exits):
        return found
    others = exits.tsc[~is_halt(exits["detail"], exits["word"])]
    return np.where(way.notified == ABSENT, first_in(others, way.start, ended), found)


def _kick(
    trace: StormTrace, guest: GuestSide, events: EventIndex, target: int, way: _Span
) -> Stamps:
    """The IPI or doorbell to the host CPU of `target`."""
    sender, cpus = trace.sender, trace.cpus
    bells = events.stamps(
        sender, [Kind.KVM_AVIC_DOORBELL], lambda e: np.asarray(e["detail"] == target)
    )
    sends = events.of(sender, Kind.IPI_SEND_CPU)
    to_it = sends.tsc
    if cpus is not None:
        to_it = sends.tsc[sends["word"] == cpus[target]]
    elif len(sends) and len(guest.low):
        cpu = _cpu_afterwards(events, target, way)
        window = np.searchsorted(guest.low, sends.tsc, side="right") - 1
        there = (window >= 0) & (cpu.take(window, mode="clip") == sends["word"])
        to_it = sends.tsc[there]
    kicks = np.sort(np.concatenate([bells, to_it])) if len(bells) else to_it
    return first_in(kicks, way.start, np.minimum(way.before, guest.done))


def _cpu_afterwards(events: EventIndex, target: int, way: _Span) -> NDArray[np.int64]:
    """The host CPU of the target at its first event for the IPI; -1 if there is none."""
    groups = [events.of(target, kind) for kind in _OWN]
    tsc = np.concatenate([group.tsc for group in groups])
    cpu = np.concatenate([group["cpu"] for group in groups]).astype(np.int64)
    if not len(tsc):
        return np.full(len(way.start), -1)
    order = np.lexsort([cpu, tsc])
    tsc, cpu = tsc[order], cpu[order]
    at = np.searchsorted(tsc, way.start)
    inside = (at < len(tsc)) & (tsc.take(at, mode="clip") < way.before)
    return np.where(inside, cpu.take(at, mode="clip"), -1)


def _came_in(e: Events) -> NDArray[np.bool_]:
    return np.asarray(e["detail"] == 1)
