# SPDX-License-Identifier: Apache-2.0
"""How many host events per second the correlator takes, and how much memory it needs.

CPU time, the best of several, since the host may have other work. Stand-alone, without root:
`python -m bench.bench_correlate [-n EVENTS] [--stream EVENTS]`.
"""

import argparse
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ipitrace.correlate.exits import exit_tables
from ipitrace.correlate.spans import StormTrace, correlate
from ipitrace.correlate.stream import correlate_stream
from ipitrace.layout import HOST_EVENT, Kind
from ipitrace.storm.abi import RECEIPT, SEND

_PERIOD = 200_000
_VECTOR = 0xF0
_SLACK = 2000  # of the made-up clock, cycles
_FIRST_TSC = 1 << 43
_REPEATS = 7


@dataclass(frozen=True)
class Shape:
    """One event of every IPI: whose, when after the send, and what it says."""

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


def _best_s(work: Callable[[], object]) -> float:
    times = []
    for _ in range(_REPEATS):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return min(times)


def _streamed(shapes: tuple[Shape, ...], n_events: int) -> tuple[float, int]:
    """Seconds in the correlator alone, and spans made, of a storm that is never there whole."""
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one line a measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=2_000_000, help="events of one storm")
    parser.add_argument("--stream", type=int, default=0, help="events of one streamed storm")
    options = parser.parse_args(arguments)
    for name, shapes in (("emulated", _EMULATED), ("vmx", _VMX)):
        trace = storm(shapes, options.n)
        n = len(trace.events)
        spans = correlate(trace)
        shuffled = np.random.default_rng(0).permutation(n)
        mixed = replace(trace, events=trace.events[shuffled], event_tsc=trace.event_tsc[shuffled])
        for what, work in (
            ("correlate", lambda trace=trace: correlate(trace)),
            ("correlate, shuffled", lambda mixed=mixed: correlate(mixed)),
            ("exit_tables", lambda trace=trace, spans=spans: exit_tables(trace, spans)),
        ):
            print(f"{name:9} {what:20} {n / _best_s(work) / 1e6:6.2f} M events/s")
    if options.stream:
        seconds, spans_made = _streamed(_VMX, options.stream)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
        print(
            f"vmx       correlate_stream     {options.stream / seconds / 1e6:6.2f} M events/s, "
            f"{spans_made} spans, peak memory {peak:.2f} GiB"
        )


if __name__ == "__main__":
    main()
