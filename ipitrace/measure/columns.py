# SPDX-License-Identifier: Apache-2.0
"""Converts a repetition to columns of the recording's tables, and describes each column."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ipitrace.correlate.breakdown import came_late
from ipitrace.correlate.pairing import NONE, eoi_tsc, pair_receipts, taken
from ipitrace.correlate.spans import Spans, StormTrace
from ipitrace.correlate.stamps import ABSENT, NEVER
from ipitrace.storm.driver import Storm
from ipitrace.words.events import HOST_EVENTS
from ipitrace.words.paths import IpiPath
from ipitrace.words.scenarios import Route
from ipitrace.words.stages import CRITICAL, STAGES, Stage

Columns = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class RepetitionKey:
    """The scenario and the repetition that rows belong to."""

    scenario: str
    repetition: int

    def columns(self, n: int) -> dict[str, NDArray[Any]]:
        """The two columns with these values, of `n` rows."""
        return {
            "scenario": np.full(n, self.scenario, dtype=object),
            "repetition": np.full(n, self.repetition, np.int32),
        }


_PLACE = {
    "scenario": "the scenario's name",
    "repetition": "number of the repetition, counted over the whole recording",
}

HOST_EVENT_MEANINGS = {
    **_PLACE,
    "ts_ns": "CLOCK_MONOTONIC of the event",
    "tsc": "the same point in time on the guest's TSC",
    "vcpu": "the vCPU in whose thread the event happened",
    "cpu": "the host CPU on which the event happened",
    "kind": "the tracepoint or the probed function",
    "arg": "see bpf/ipitrace_events.h",
    "word": "see bpf/ipitrace_events.h",
    "detail": "see bpf/ipitrace_events.h",
}

_ZERO_IS_UNKNOWN = [event.kind for event in HOST_EVENTS if event.zero_is_unknown]
_KIND_NAMES = np.array([event.name for event in HOST_EVENTS], dtype=object)


def host_event_columns(place: RepetitionKey, trace: StormTrace) -> Columns:
    """One row for each host event of a recorded repetition, in order of time."""
    order = np.argsort(trace.event_tsc, kind="stable")
    events = trace.events[order]
    return {
        **place.columns(len(events)),
        "ts_ns": events["ts_ns"],
        "tsc": trace.event_tsc[order],
        "vcpu": events["vcpu"],
        "cpu": events["cpu"],
        "kind": _KIND_NAMES[events["kind"]],
        "arg": events["arg"],
        "word": events["word"],
        "detail": np.ma.masked_where(
            np.isin(events["kind"], _ZERO_IS_UNKNOWN) & (events["detail"] == 0), events["detail"]
        ),
    }


GUEST_IPI_MEANINGS = {
    **_PLACE,
    "mode": "the mode of the repetition: off, stages or evidence",
    "seq": "number of the send in its repetition, warm-up included",
    "sender": "the vCPU that sent",
    "target": "the vCPU to which the IPI was sent",
    "send_tsc": "guest TSC before the send",
    "sent_tsc": "guest TSC after the send",
    "handler_tsc": "guest TSC of the handler's first instruction",
    "eoi_tsc": "guest TSC after the handler's EOI",
    "ack_tsc": "guest TSC when the sender had seen every acknowledgement",
}


def guest_ipi_columns(place: RepetitionKey, storm: Storm, mode: str, route: Route) -> Columns:
    """One row for each send of one sender and target; the rows of one send are adjacent."""
    sends, targets = storm.sends_of(route.sender), route.targets
    n, m = len(sends), len(targets)
    send_tsc = sends["send_tsc"].astype(np.int64)
    handler, eoi = [], []
    for target in targets:
        receipts = storm.receipts[target]
        handled = receipts["handler_tsc"].astype(np.int64)
        index = pair_receipts(send_tsc, handled).receipt_of_send
        handler.append(taken(handled, index))
        eoi.append(taken(eoi_tsc(receipts), index))
    ack = sends["ack_tsc"].astype(np.int64)
    return {
        **place.columns(n * m),
        "mode": np.full(n * m, mode, dtype=object),
        "seq": np.repeat(sends["seq"], m),
        "sender": np.full(n * m, route.sender, np.int16),
        "target": np.tile(np.array(targets, np.int16), n),
        "send_tsc": np.repeat(send_tsc, m),
        "sent_tsc": np.repeat(sends["sent_tsc"].astype(np.int64), m),
        "handler_tsc": _masked(np.stack(handler, axis=1).reshape(-1)),
        "eoi_tsc": _masked(np.stack(eoi, axis=1).reshape(-1)),
        "ack_tsc": _masked(np.repeat(np.where(ack == 0, ABSENT, ack), m)),
    }


SPAN_MEANINGS = {
    "ipi": "number of the delivery in the recording, for `ipitrace report --ipi`",
    **_PLACE,
    "seq": "number of the send in its repetition, warm-up included",
    "sender": "the vCPU that sent",
    "target": "the vCPU to which the IPI was sent",
    "path": "the mechanism by which the IPI left its sender",
    "sequence": "the stages from the send to the handler, in order of time",
    "sender_exits": "VM exits of the sender from this send to the next; null if kvm_exit never "
    "fires",
    "target_exits": "VM exits of the target in the same time; null if kvm_exit never fires",
    "suspect": "the guest's TSC offset changed around this delivery",
    **{f"{spec.name}_tsc": f"guest TSC: {spec.meaning}" for spec in STAGES},
}

_PATH_NAMES = np.array([path.text for path in IpiPath], dtype=object)
_STAGE_NAMES = [spec.name for spec in STAGES]


def span_columns(place: RepetitionKey, spans: Spans, first_ipi: int) -> Columns:
    """One row for each delivery of a recorded repetition."""
    n = len(spans.seq)
    return {
        "ipi": np.arange(first_ipi, first_ipi + n, dtype=np.int64),
        **place.columns(n),
        "seq": spans.seq,
        "sender": spans.sender.astype(np.int16),
        "target": spans.target.astype(np.int16),
        "path": _PATH_NAMES[spans.path],
        "sequence": _sequences(spans),
        "sender_exits": _masked(spans.sender_exits).astype(np.int32),
        "target_exits": _masked(spans.target_exits).astype(np.int32),
        "suspect": spans.suspect,
        **{f"{spec.name}_tsc": _masked(spans.tsc[:, spec.stage]) for spec in STAGES},
    }


def _sequences(spans: Spans) -> NDArray[Any]:
    """Each span's critical stages in order of time, as one text; few texts differ."""
    there = CRITICAL & (spans.tsc != ABSENT) & ~came_late(spans.tsc)
    tsc = np.where(there, spans.tsc, NEVER)
    tsc[:, Stage.SEND] = ABSENT
    handled = spans.tsc[:, Stage.HANDLER] != ABSENT
    tsc[handled, Stage.HANDLER] = NEVER - 1  # last, whatever the clock's error
    order = np.argsort(tsc, axis=1, kind="stable").astype(np.int8)
    absent = np.take_along_axis(tsc, order.astype(np.int64), axis=1) == NEVER
    order[absent] = NONE
    unique, inverse = np.unique(order, axis=0, return_inverse=True)
    texts = [" > ".join(_STAGE_NAMES[s] for s in row if s != NONE) for row in unique]
    return np.array(texts, dtype=object)[inverse.reshape(-1)]


def _masked(stamps: NDArray[np.int64]) -> NDArray[Any]:
    """Absent stamps and counts become nulls."""
    return np.ma.masked_equal(stamps, ABSENT)
