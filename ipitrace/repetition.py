# SPDX-License-Identifier: Apache-2.0
"""One repetition: a storm in a fresh guest, watched as its mode says, on one clock."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ipitrace.clock import (
    Clock,
    HostClockMap,
    Sandwich,
    count_violations,
    offset_changes,
    own_guest_tsc,
)
from ipitrace.correlate.exits import exit_tables
from ipitrace.correlate.pairing import ABSENT
from ipitrace.correlate.spans import Spans, StormTrace, correlate
from ipitrace.correlate.stages import Stage
from ipitrace.errors import MeasurementError
from ipitrace.host.interrupts import delta, read_interrupts
from ipitrace.layout import Kind
from ipitrace.model import StormRequest
from ipitrace.storm.driver import Driver, Hooks, Storm
from ipitrace.summary import SENDER, Mode, Watched
from ipitrace.tracer.session import Tracer

_SANDWICH_EVERY_S = 0.02

# What must not come before what; the first two are one thread's own events.
_CAUSES = {
    "ipi_before_send": (Stage.SEND, Stage.IPI),
    "handler_before_accept": (Stage.ACCEPT, Stage.HANDLER),
    "handler_before_inject": (Stage.INJECT, Stage.HANDLER),
    "sent_before_icr_write": (Stage.ICR_WRITE, Stage.SENT),
    "ack_before_handler": (Stage.HANDLER, Stage.ACK),
}


@dataclass(frozen=True)
class Recorded:
    """A storm and what was recorded of it.

    Attributes:
        watched: None unless the mode was FULL and the clocks could be put together.
        trace: what `watched` was made from, for the recording.
        no_trace_reason: why `watched` is None although the mode was FULL.
        violations: effects before their causes, by kind.
        sandwiches: readings of both host clocks taken meanwhile.
    """

    storm: Storm
    mode: Mode
    watched: Watched | None
    trace: StormTrace | None
    no_trace_reason: str | None
    violations: Mapping[str, int]
    sandwiches: tuple[Sandwich, ...]


class _ClockReader:
    """Reads both clocks now and then, while a storm runs."""

    def __init__(self, clock: Clock | None) -> None:
        self._clock = clock
        self._next_s = 0.0
        self.sandwiches: list[Sandwich] = []

    def read(self, *, now: bool = False) -> None:
        if self._clock is None or (not now and time.monotonic() < self._next_s):
            return
        self.sandwiches.append(self._clock.sandwich())
        self._next_s = time.monotonic() + _SANDWICH_EVERY_S


def run_repetition(
    request: StormRequest,
    guest: Driver,
    *,
    tracer: Tracer | None,
    mode: Mode,
    clock: Clock | None,
    told: Callable[[int], None],
    earlier: Sequence[Sandwich] = (),
) -> Recorded:
    """Run one storm; with a tracer, in the given mode.

    `earlier` are the latest readings of the clocks before it: a storm alone may be too short
    to know the clocks' rates well.

    Raises:
        HostError, MeasurementError: as Driver.run.
    """
    reader = _ClockReader(clock)

    def tick(sent: int) -> None:
        reader.read()
        if tracer is not None and mode == Mode.FULL:
            tracer.drain()
        told(sent)

    reader.read(now=True)
    if tracer is None or mode == Mode.OFF:
        storm = guest.run(request, Hooks(tick=tick))
        reader.read(now=True)
        return Recorded(storm, mode, None, None, None, {}, tuple(reader.sandwiches))
    lost_before = _events_lost(tracer)
    hooks = Hooks(threads_known=tracer.set_vcpu_threads, mark=tracer.seen, tick=tick)
    before = read_interrupts()
    storm = guest.run(request, hooks)
    after = read_interrupts()
    interrupts = delta(before, after) if before is not None and after is not None else None
    reader.read(now=True)
    if mode == Mode.COUNTING:
        return Recorded(storm, mode, None, None, None, {}, tuple(reader.sandwiches))
    tracer.drain()
    events = tracer.take()
    try:
        trace = _on_one_clock(
            request,
            guest,
            storm,
            events,
            complete=_events_lost(tracer) == lost_before,
            sandwiches=[*earlier, *reader.sandwiches],
            resolution_ns=1 if clock is None else clock.resolution_ns,
        )
    except MeasurementError as error:
        return Recorded(storm, mode, None, None, error.message, {}, tuple(reader.sandwiches))
    spans = correlate(trace)
    return Recorded(
        storm,
        mode,
        Watched(spans, exit_tables(trace, spans), interrupts),
        trace,
        None,
        _violations(spans, trace.bound_cycles),
        tuple(reader.sandwiches),
    )


def _on_one_clock(
    request: StormRequest,
    guest: Driver,
    storm: Storm,
    events: NDArray[np.void],
    *,
    complete: bool,
    sandwiches: list[Sandwich],
    resolution_ns: int,
) -> StormTrace:
    """Put host events on the guest's clock.

    Raises:
        MeasurementError: that cannot be done; the message says why.
    """
    window = (storm.start.ts_ns, storm.end.ts_ns)
    exits_fire = bool((events["kind"] == Kind.KVM_EXIT).any())
    inside = (events["ts_ns"] >= window[0]) & (events["ts_ns"] <= window[1])
    measured = events[inside]
    host_map = HostClockMap.build(sandwiches, resolution_ns)
    host_hz = host_map.cycles_per_ns * 1e9
    guest_tsc, reason = own_guest_tsc(storm.tsc_offset, storm.tsc_khz, host_hz)
    if guest_tsc is None:
        raise MeasurementError(f"The guest's TSC is not known: {reason}.", "")
    bounds = host_map.bound_cycles(np.array([*window, *measured["ts_ns"]]))
    writes = events[events["kind"] == Kind.KVM_WRITE_TSC_OFFSET]["ts_ns"]
    changes = [
        change
        for start, end in zip(storm.tsc_offsets_start, storm.tsc_offsets_end, strict=True)
        for change in offset_changes(start, end, window, [int(w) for w in writes])
    ]
    if len(set(storm.tsc_offsets_start)) > 1:
        raise MeasurementError("The vCPUs' TSC offsets differ.", "Boot with a stable TSC.")

    def to_guest(ts_ns: object) -> NDArray[np.int64]:
        mapped: NDArray[np.int64] = guest_tsc.to_guest(host_map.to_tsc(ts_ns)).view(np.int64)  # type: ignore[arg-type]
        return mapped

    return StormTrace(
        sends=storm.sends,
        receipts=storm.receipts,
        sender=SENDER,
        targets=guest.targets(request.scenario),
        vector=guest.vector(request.scenario),
        events=measured,
        event_tsc=to_guest(measured["ts_ns"]),
        bound_cycles=int(np.ceil(bounds.max() * guest_tsc.scale)),
        cpus=guest.pinned_cpus,
        complete=complete,
        exits_fire=exits_fire,
        suspect=[(int(low), int(high)) for low, high in (to_guest(np.array(c)) for c in changes)],
    )


def _events_lost(tracer: Tracer) -> int:
    """How many events were lost so far; misses the kernel does not count are not in it."""
    losses = tracer.losses()
    misses = sum(n or 0 for n in losses.recursion_misses.values())
    return sum(losses.ring_overruns.values()) + misses


def _violations(spans: Spans, bound_cycles: int) -> dict[str, int]:
    pairs = {}
    for name, (earlier, later) in _CAUSES.items():
        both = (spans.stage(earlier) != ABSENT) & (spans.stage(later) != ABSENT)
        pairs[name] = (spans.stage(earlier)[both], spans.stage(later)[both])
    return count_violations(pairs, bound_cycles)
