# SPDX-License-Identifier: Apache-2.0
"""Spans: for each IPI and target, when each stage happened.

An IPI's window reaches from its send to the next one. Within it, the stages on
the sender's side are found among the events of the sender's thread, those on a
target's side among that target's, by kind, vector and time. All searches are
binary searches of whole columns (numpy.searchsorted).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ipitrace.correlate.pairing import ABSENT, pair_receipts, taken
from ipitrace.correlate.paths import classify, path_of_exits
from ipitrace.correlate.stages import HOST_INTERRUPTS, ICR_WRITES, KICKS, Stage
from ipitrace.layout import Kind

_NEVER = np.iinfo(np.int64).max
_FASTPATHS = tuple(kind for kind in Kind if kind.name.lower().startswith("handle_fastpath"))


@dataclass(frozen=True)
class StormTrace:
    """One traced storm; every stamp is guest TSC as int64.

    Attributes:
        sends: records of storm.abi.SEND, ascending.
        receipts: each vCPU's records of storm.abi.RECEIPT, ascending.
        sender: the vCPU that sends.
        targets: the vCPUs that handle each IPI.
        vector: the interrupt vector they are sent with.
        events: records of layout.HOST_EVENT, of the VM's vCPUs and in any order.
        event_tsc: their stamps; shape (len(events),).
        bound_cycles: how far an event's stamp may be off.
        cpus: the host CPU of each vCPU where they are pinned, else None.
        complete: no event was lost.
        exits_fire: kvm_exit was seen in this VM at all.
        suspect: intervals of TSC in which the guest's clock cannot be trusted.
    """

    sends: NDArray[np.void]
    receipts: Sequence[NDArray[np.void]]
    sender: int
    targets: Sequence[int]
    vector: int
    events: NDArray[np.void]
    event_tsc: NDArray[np.int64]
    bound_cycles: int
    cpus: Sequence[int] | None
    complete: bool
    exits_fire: bool
    suspect: Sequence[tuple[int, int]] = ()


@dataclass(frozen=True)
class Spans:
    """One row for each send and target; rows of one send follow each other.

    Attributes:
        seq: the send's number; shape (n,), as are the others but `tsc`.
        target: the vCPU.
        path: a paths.Path.
        tsc: guest TSC of each stage, ABSENT where it was not seen; shape (n, len(Stage)).
        sender_exits: kvm_exit of the sender's thread in the IPI's window.
        target_exits: kvm_exit of the target's thread in the IPI's window.
        suspect: the guest's TSC offset changed around it.
        unmatched_events: events with the IPIs' vector that belong to no span, by tracepoint.
    """

    seq: NDArray[np.int64]
    target: NDArray[np.int64]
    path: NDArray[np.int8]
    tsc: NDArray[np.int64]
    sender_exits: NDArray[np.int64]
    target_exits: NDArray[np.int64]
    suspect: NDArray[np.bool_]
    unmatched_events: dict[str, int]

    @property
    def unmatched_ipis(self) -> int:
        """Spans without any host event between send and handler."""
        host = [Stage.SENDER_EXIT, Stage.IPI, Stage.ACCEPT, Stage.APICV_ACCEPT, Stage.ICR_WRITE]
        return int(np.count_nonzero((self.tsc[:, host] == ABSENT).all(axis=1)))

    def stage(self, stage: Stage) -> NDArray[np.int64]:
        """One stage's column."""
        return self.tsc[:, stage]


class _Events:
    """A storm's events, sorted by time within each (vCPU, kind)."""

    def __init__(self, trace: StormTrace) -> None:
        order = np.argsort(trace.event_tsc, kind="stable")
        key = trace.events["vcpu"].astype(np.uint16) << 6 | trace.events["kind"]
        order = order[np.argsort(key[order], kind="stable")]
        self._keys = key[order]
        self._events = trace.events[order]
        self._tsc = trace.event_tsc[order]

    def of(self, vcpu: int, kind: Kind) -> tuple[NDArray[np.void], NDArray[np.int64]]:
        """Records and stamps of one vCPU's events of one kind, ascending."""
        key = np.uint16(vcpu << 6 | kind)
        part = slice(*np.searchsorted(self._keys, [key, key + np.uint16(1)]))
        return self._events[part], self._tsc[part]

    def where(
        self,
        vcpu: int,
        kinds: Iterable[Kind],
        keep: Callable[[NDArray[np.void]], NDArray[np.bool_]],
    ) -> NDArray[np.int64]:
        """Stamps of one vCPU's events of several kinds that `keep` keeps, ascending."""
        parts = [self.of(vcpu, kind) for kind in kinds]
        stamps = [tsc[keep(records)] for records, tsc in parts if len(tsc)]
        if not stamps:
            return np.empty(0, np.int64)
        return stamps[0] if len(stamps) == 1 else np.sort(np.concatenate(stamps))


def _all(records: NDArray[np.void]) -> NDArray[np.bool_]:
    return np.ones(len(records), np.bool_)


def _first(
    tsc: NDArray[np.int64], low: NDArray[np.int64], high: NDArray[np.int64]
) -> NDArray[np.int64]:
    """For each i the first stamp in [low[i], high[i]), or ABSENT."""
    at = np.searchsorted(tsc, low)
    padded = np.append(tsc, _NEVER)
    found = padded[at]
    return np.where((found < high) & (at < len(tsc)), found, ABSENT)


def _last(
    tsc: NDArray[np.int64], low: NDArray[np.int64], high: NDArray[np.int64]
) -> NDArray[np.int64]:
    """For each i the last stamp in [low[i], high[i]), or ABSENT."""
    at = np.searchsorted(tsc, high) - 1
    padded = np.append(tsc, ABSENT)
    found = padded[at]
    return np.where((at >= 0) & (found >= low), found, ABSENT)


def _count(
    tsc: NDArray[np.int64], low: NDArray[np.int64], high: NDArray[np.int64]
) -> NDArray[np.int64]:
    """For each i how many stamps lie in [low[i], high[i])."""
    return np.asarray(np.searchsorted(tsc, high) - np.searchsorted(tsc, low), np.int64)


def correlate(trace: StormTrace) -> Spans:
    """Find each IPI's stages; see StormTrace for what goes in and Spans for what comes out."""
    events = _Events(trace)
    sent = _SenderSide(trace, events)
    rows = [_target_side(trace, events, sent, target) for target in trace.targets]
    n, m = len(trace.sends), len(rows)
    tsc = np.stack([row.tsc for row in rows], axis=1).reshape(n * m, len(Stage))
    return Spans(
        seq=np.repeat(trace.sends["seq"].astype(np.int64), m),
        target=np.tile(np.array(list(trace.targets), np.int64), n),
        path=np.repeat(sent.path, m),
        tsc=tsc,
        sender_exits=np.repeat(sent.exits, m),
        target_exits=np.stack([row.exits for row in rows], axis=1).reshape(n * m),
        suspect=_suspect(tsc[:, Stage.SEND], np.repeat(sent.until, m), trace.suspect),
        unmatched_events=_unmatched(trace, events, tsc),
    )


class _SenderSide:
    """What is the same for all targets of a send; every array has shape (n sends,)."""

    def __init__(self, trace: StormTrace, events: _Events) -> None:
        sends, slack = trace.sends, trace.bound_cycles
        vcpu = trace.sender
        self.send = sends["send_tsc"].astype(np.int64)
        self.sent = sends["sent_tsc"].astype(np.int64)
        ack = sends["ack_tsc"].astype(np.int64)
        self.ack = np.where(ack == 0, ABSENT, ack)
        self.low = self.send - slack
        # the last window ends where its send's own story ends
        end = max(int(self.sent[-1]), int(ack[-1])) + 1 if len(sends) else 0
        self.until = np.append(self.send[1:] - slack, end + slack)
        done = np.minimum(self.sent + slack + 1, self.until)
        self.ipi = _first(
            events.where(vcpu, [Kind.KVM_APIC_IPI], lambda e: (e["word"] & 0xFF) == trace.vector),
            self.low,
            self.until,
        )
        self.icr_write = _first(
            events.where(vcpu, ICR_WRITES, lambda e: (e["arg"] & 0xFF) == trace.vector),
            self.low,
            self.until,
        )
        exits, exit_tsc = events.of(vcpu, Kind.KVM_EXIT)
        exit_path = path_of_exits(exits["detail"], exits["word"])
        of_send = exit_path != 0
        self.exit = _first(exit_tsc[of_send], self.low, done)
        which = np.searchsorted(exit_tsc[of_send], np.where(self.exit == ABSENT, 0, self.exit))
        padded = np.append(exit_path[of_send], np.int8(0))
        self.exit_path = np.where(self.exit == ABSENT, np.int8(0), padded[which])
        self.exits = _count(exit_tsc, self.low, self.until)
        _entries, entry_tsc = events.of(vcpu, Kind.KVM_ENTRY)
        self.entry = np.where(
            self.exit == ABSENT, ABSENT, _first(entry_tsc, self.exit + 1, self.until)
        )
        self.path = classify(
            exit_path=self.exit_path,
            hypercall=self._seen(events, vcpu, (Kind.KVM_HYPERCALL,), done),
            avic_incomplete=self._seen(events, vcpu, (Kind.KVM_AVIC_INCOMPLETE_IPI,), done),
            fastpath=self._seen(events, vcpu, _FASTPATHS, done),
            kvm_took_it=(self.ipi != ABSENT) | (self.icr_write != ABSENT),
            exits_fire=trace.exits_fire,
            complete=trace.complete,
        )

    def _seen(
        self, events: _Events, vcpu: int, kinds: Iterable[Kind], until: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        return np.asarray(_first(events.where(vcpu, kinds, _all), self.low, until) != ABSENT)


@dataclass(frozen=True)
class _TargetSide:
    tsc: NDArray[np.int64]
    exits: NDArray[np.int64]


def _target_side(trace: StormTrace, events: _Events, sent: _SenderSide, target: int) -> _TargetSide:
    """One target's rows: the sender's stages that name it, and its own."""
    slack, vector, until = trace.bound_cycles, trace.vector, sent.until
    receipts = trace.receipts[target]
    handled = receipts["handler_tsc"].astype(np.int64)
    index = pair_receipts(sent.send, handled).receipt_of_send
    handler = taken(handled, index)
    # what leads to the handler happened before it; without a handler, in the window
    before = np.where(handler == ABSENT, until, np.minimum(handler + slack + 1, until))

    def to_target(records: NDArray[np.void]) -> NDArray[np.bool_]:
        return np.asarray((records["detail"] == vector) & (records["word"] == target))

    accept = _first(
        events.where(trace.sender, [Kind.KVM_APIC_ACCEPT_IRQ], to_target), sent.low, until
    )
    posted = _first(
        events.where(trace.sender, [Kind.KVM_APICV_ACCEPT_IRQ], to_target), sent.low, until
    )
    accepted = np.where(accept == ABSENT, np.where(posted == ABSENT, sent.low, posted), accept)

    def kicks(records: NDArray[np.void]) -> NDArray[np.bool_]:
        if trace.cpus is None or not len(records) or records["kind"][0] != Kind.IPI_SEND_CPU:
            return _all(records)
        return np.asarray(records["word"] == trace.cpus[target])

    def first_of(
        kinds: Iterable[Kind], keep: Callable[..., NDArray[np.bool_]]
    ) -> NDArray[np.int64]:
        return _first(events.where(target, kinds, keep), sent.low, before)

    exit_tsc = events.where(target, [Kind.KVM_EXIT], _all)
    tsc = np.full((len(sent.send), len(Stage)), ABSENT, np.int64)
    tsc[:, Stage.SEND] = sent.send
    tsc[:, Stage.SENDER_EXIT] = sent.exit
    tsc[:, Stage.IPI] = sent.ipi
    tsc[:, Stage.ACCEPT] = accept
    tsc[:, Stage.APICV_ACCEPT] = posted
    tsc[:, Stage.KICK] = _first(events.where(trace.sender, KICKS, kicks), accepted, before)
    tsc[:, Stage.ICR_WRITE] = sent.icr_write
    tsc[:, Stage.SENDER_ENTRY] = sent.entry
    tsc[:, Stage.SENT] = sent.sent
    tsc[:, Stage.HANDLER] = handler
    tsc[:, Stage.EOI] = taken(receipts["eoi_tsc"].astype(np.int64), index)
    tsc[:, Stage.ACK] = sent.ack
    tsc[:, Stage.INJECT] = first_of([Kind.KVM_INJ_VIRQ], lambda e: e["detail"] == vector)
    tsc[:, Stage.KVM_EOI] = _first(
        events.where(target, [Kind.KVM_EOI, Kind.KVM_PV_EOI], lambda e: e["detail"] == vector),
        sent.low,
        until,
    )
    if target != trace.sender:
        tsc[:, Stage.TARGET_INTERRUPT] = first_of(HOST_INTERRUPTS, _all)
        tsc[:, Stage.SCHED_IN] = first_of([Kind.SCHED_SWITCH], lambda e: e["detail"] == 1)
        tsc[:, Stage.WAKEUP] = first_of([Kind.KVM_VCPU_WAKEUP], _all)
        tsc[:, Stage.TARGET_EXIT] = _first(exit_tsc, sent.low, before)
        tsc[:, Stage.TARGET_ENTRY] = _last(
            events.where(target, [Kind.KVM_ENTRY], _all), sent.low, before
        )
    return _TargetSide(tsc, _count(exit_tsc, sent.low, until))


def _suspect(
    low: NDArray[np.int64], high: NDArray[np.int64], intervals: Iterable[tuple[int, int]]
) -> NDArray[np.bool_]:
    touched = np.zeros(len(low), np.bool_)
    for start, end in intervals:
        touched |= (low < end) & (high > start)
    return touched


def _unmatched(trace: StormTrace, events: _Events, tsc: NDArray[np.int64]) -> dict[str, int]:
    """Events that carry the vector and that no span took, by tracepoint."""
    vector = trace.vector
    matched: dict[Kind, tuple[Stage, Sequence[int], Callable[..., NDArray[np.bool_]]]] = {
        Kind.KVM_APIC_IPI: (Stage.IPI, [trace.sender], lambda e: (e["word"] & 0xFF) == vector),
        Kind.KVM_APIC_ACCEPT_IRQ: (Stage.ACCEPT, [trace.sender], lambda e: e["detail"] == vector),
        Kind.KVM_INJ_VIRQ: (Stage.INJECT, trace.targets, lambda e: e["detail"] == vector),
    }
    unmatched = {}
    for kind, (stage, vcpus, keep) in matched.items():
        stamps = [events.where(vcpu, [kind], keep) for vcpu in vcpus]
        total = sum(len(s) for s in stamps)
        column = tsc[:, stage]
        if stage == Stage.IPI:
            column = column[:: max(len(trace.targets), 1)]
        left = total - int(np.count_nonzero(column != ABSENT))
        if left > 0:
            unmatched[kind.name.lower()] = left
    return unmatched
