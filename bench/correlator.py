# SPDX-License-Identifier: Apache-2.0
"""The correlator's throughput in host events per second, and its memory usage."""

import multiprocessing
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from bench.report import PER_SECOND, Report, Series, spread
from ipitrace.abi.events import HOST_EVENT
from ipitrace.abi.storm import RECEIPT, SEND
from ipitrace.correlate.exits import exit_tables
from ipitrace.correlate.spans import StormTrace, correlate
from ipitrace.correlate.stream import correlate_stream
from ipitrace.words.events import Kind

_PERIOD = 200_000
_VECTOR = 0xF0
_SLACK = 2000  # the error bound of the synthetic clock, cycles
_FIRST_TSC = 1 << 43
_REPEATS = 7
_EVENTS = 2_000_000
_STREAM_EVENTS = 100_000_000


@dataclass(frozen=True)
class Shape:
    """One event of every IPI: its vCPU, its time after the send, and its values."""

    vcpu: int
    after_cycles: int
    kind: Kind
    detail: int = 0
    word: int = 0
    arg: int = 0


_EMULATED = (
    Shape(0, 12_000, Kind.KVM_APIC_IPI, word=_VECTOR, arg=1),
    Shape(0, 12_600, Kind.KVM_APIC_ACCEPT_IRQ, detail=_VECTOR, word=1),
    Shape(0, 13_300, Kind.IPI_SEND_CPU, word=1),
    Shape(0, 33_000, Kind.KVM_APIC, detail=1, word=0x300, arg=1 << 32 | _VECTOR),
    Shape(0, 33_600, Kind.KVM_MSR, detail=1, word=0x830, arg=1 << 32 | _VECTOR),
    Shape(1, 47_000, Kind.RESCHEDULE_ENTRY, detail=0xFD),
    Shape(1, 58_000, Kind.KVM_EOI, detail=_VECTOR),
    Shape(1, 103_000, Kind.KVM_EOI, detail=0xFFFF),
)
_VMX = (
    Shape(0, 900, Kind.KVM_EXIT, detail=1, word=32),
    Shape(0, 1_500, Kind.KVM_APIC_IPI, word=_VECTOR, arg=1),
    Shape(0, 1_700, Kind.KVM_APIC_ACCEPT_IRQ, detail=_VECTOR, word=1),
    Shape(0, 1_900, Kind.IPI_SEND_CPU, word=1),
    Shape(0, 2_600, Kind.KVM_APIC, detail=1, word=0x300, arg=1 << 32 | _VECTOR),
    Shape(0, 2_700, Kind.KVM_MSR, detail=1, word=0x830, arg=1 << 32 | _VECTOR),
    Shape(0, 3_300, Kind.KVM_ENTRY),
    Shape(1, 3_000, Kind.KVM_EXIT, detail=1, word=1),
    Shape(1, 4_300, Kind.KVM_INJ_VIRQ, detail=_VECTOR),
    Shape(1, 4_700, Kind.KVM_ENTRY),
    Shape(1, 5_900, Kind.KVM_EXIT, detail=1, word=32),
    Shape(1, 6_400, Kind.KVM_EOI, detail=_VECTOR),
    Shape(1, 7_000, Kind.KVM_ENTRY),
)
_SENT_HANDLER_EOI_ACK = {
    _EMULATED: (41_000, 61_000, 105_000, 125_000),
    _VMX: (4_000, 5_200, 7_500, 8_500),
}


def storm(shapes: tuple[Shape, ...], n_events: int, *, with_events: bool = True) -> StormTrace:
    """A storm of about `n_events` events of these shapes, in order of time."""
    n = n_events // len(shapes)
    sent, handler, eoi, ack = _SENT_HANDLER_EOI_ACK[shapes]
    send = _FIRST_TSC + np.arange(n) * _PERIOD
    sends, receipts = np.zeros(n, SEND), np.zeros(n, RECEIPT)
    sends["send_tsc"], sends["sent_tsc"], sends["ack_tsc"] = send, send + sent, send + ack
    sends["seq"], sends["target"] = np.arange(n), 1
    receipts["handler_tsc"], receipts["eoi_tsc"] = send + handler, send + eoi
    events, tsc = _events(shapes, 0, n if with_events else 0)
    return StormTrace(
        sends=sends,
        receipts=(receipts[:0], receipts),
        sender=0,
        targets=(1,),
        vector=_VECTOR,
        events=events,
        event_tsc=tsc,
        bound_cycles=_SLACK,
        cpus=(0, 1),
        complete=True,
        exits_fire=shapes is _VMX,
    )


def _events(
    shapes: tuple[Shape, ...], first: int, until: int
) -> tuple[NDArray[np.void], NDArray[np.int64]]:
    """The events of IPIs `first` to `until`, jittered, in order of time."""
    shapes = tuple(sorted(shapes, key=lambda s: s.after_cycles))
    n = until - first
    events = np.zeros((n, len(shapes)), HOST_EVENT)
    for column, shape in enumerate(shapes):
        part = events[:, column]
        part["kind"], part["vcpu"], part["cpu"] = shape.kind, shape.vcpu, shape.vcpu
        part["detail"], part["word"], part["arg"] = shape.detail, shape.word, shape.arg
    after = np.array([shape.after_cycles for shape in shapes])
    jitter = np.random.default_rng(first).integers(0, 50, (n, len(shapes)))
    send = _FIRST_TSC + np.arange(first, until)[:, None] * _PERIOD
    return events.reshape(-1), (send + after + jitter).reshape(-1)


def _rates(work: Callable[[], object], n_events: int) -> list[float]:
    """Events per second of CPU time, for each repetition."""
    rates = []
    for _ in range(_REPEATS):
        started = time.process_time()
        work()
        rates.append(n_events / (time.process_time() - started))
    return rates


def _streamed(shapes: tuple[Shape, ...], n_events: int) -> tuple[float, int]:
    """Seconds in the correlator only, and the number of spans, of a storm read in chunks."""
    trace = storm(shapes, n_events, with_events=False)
    making = 0.0

    def chunks() -> Iterator[tuple[NDArray[np.void], NDArray[np.int64]]]:
        nonlocal making
        step = (1 << 20) // len(shapes)
        for first in range(0, len(trace.sends), step):
            started = time.process_time()
            chunk = _events(shapes, first, min(first + step, len(trace.sends)))
            making += time.process_time() - started
            yield chunk

    started = time.process_time()
    spans = sum(len(part.seq) for part in correlate_stream(trace, chunks()))
    return time.process_time() - started - making, spans


def _stream_in_child() -> tuple[float, float]:
    """(events per second, peak memory in GiB) of a long stream, in a separate process."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        seconds, peak_kib = pool.apply(_stream)
    return _STREAM_EVENTS / seconds, peak_kib / (1 << 20)


def _stream() -> tuple[float, int]:
    seconds, _spans = _streamed(_VMX, _STREAM_EVENTS)
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def correlator() -> Report:
    """Throughput on one core, by CPU time, and the memory usage of a stream."""
    rows: list[tuple[object, ...]] = []
    series = []
    for name, shapes in (("this project's test host", _EMULATED), ("VMX", _VMX)):
        trace = storm(shapes, _EVENTS)
        spans = correlate(trace)
        for what, work in (
            ("correlate", partial(correlate, trace)),
            ("exit_tables", partial(exit_tables, trace, spans)),
        ):
            rates = _rates(work, len(trace.events))
            rows.append((what, name, f"{len(shapes)}", spread([r / 1e6 for r in rates]), ""))
            series.append(Series(f"{what}, {name}", PER_SECOND, rates))
    rate, peak_gib = _stream_in_child()
    rows.append(
        ("correlate_stream", "VMX", f"{len(_VMX)}", f"{rate / 1e6:.2f}", f"{peak_gib:.2f} GiB")
    )
    series.append(Series("correlate_stream, VMX", PER_SECOND, [rate]))
    return Report(
        title="Correlator throughput",
        columns=("function", "events as on", "events per IPI", "M events/s", "peak memory"),
        rows=rows,
        notes=(
            f"Synthetic events: {_EVENTS:,} at a time, {_STREAM_EVENTS:,} in the stream.",
            "CPU time of one core.",
        ),
        series=series,
    )
