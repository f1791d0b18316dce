# SPDX-License-Identifier: Apache-2.0
"""A target's side of each IPI: how it was told, and how its handler came to run.

Host events among themselves are in exact order, so that what a target does for an
IPI comes after the sender was seen to send it, without any allowance for the clock.
Against the guest's stamps there is one: an event may seem to come after the handler by
the clock's error, which is at most its bound, and at most what the sender's first
event seems to come after the send.
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
    """One target's rows: stamps of shape (n, len(Stage)), and how often it exited, (n,)."""

    tsc: NDArray[np.int64]
    exits: NDArray[np.int64]


@dataclass(frozen=True)
class _Span:
    """Where the way to the handler lies in host events, [start, before); shape (n,) each.

    Attributes:
        told: when the sender was seen to send the IPI to this target, ABSENT where it
            was not.
        start: the same, or else the window's begin.
        before: the handler's entry and the clock's error, or else the window's end.
    """

    told: Stamps
    start: Stamps
    before: Stamps

    def first(self, tsc: Stamps) -> Stamps:
        return first_in(tsc, self.start, self.before)


def target_side(
    trace: StormTrace, guest: GuestSide, sent: SenderSide, events: EventIndex, column: int
) -> TargetSide:
    """The rows of target number `column`: the sender's stages that name it, and its own."""
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
    # not `posted`: VMX tells of it when the target may already be running its handler
    told = either(accept, sent.began)
    late = np.minimum(
        trace.bound_cycles,
        np.where(sent.first_event == ABSENT, trace.bound_cycles, sent.first_event - guest.send),
    )
    before = np.where(handler == ABSENT, until, np.minimum(handler + late + 1, until))
    way = _Span(told, either(told, guest.low), before)
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

    It is the one that followed the injection, the last if there were several, with no
    exit between; where none was seen, the last before the handler.
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
    """The exit that let the interrupt in, before `ended`.

    Where the sender's side was not seen, the clock's error could put a HLT of before the
    send behind it; and no interrupt makes a guest execute HLT.
    """
    found = first_in(exits.tsc, way.start, ended)
    if (way.told != ABSENT).all() or not len(exits):
        return found
    others = exits.tsc[~is_halt(exits["detail"], exits["word"])]
    return np.where(way.told == ABSENT, first_in(others, way.start, ended), found)


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
    """On which host CPU the target was when it first did something for the IPI; -1: nothing."""
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
