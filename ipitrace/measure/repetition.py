# SPDX-License-Identifier: Apache-2.0
"""One repetition: one storm, watched as its mode says, on one clock."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ipitrace.base.errors import MeasurementError
from ipitrace.clock import (
    Clock,
    GuestTsc,
    HostClockMap,
    Sandwich,
    Span,
    count_violations,
    offset_changes,
    own_guest_tsc,
)
from ipitrace.correlate.exits import exit_tables
from ipitrace.correlate.spans import Spans, StormTrace, correlate
from ipitrace.correlate.stamps import ABSENT
from ipitrace.correlate.switches import NO_SWITCHES, Switches, count_switches
from ipitrace.host.conditions import Conditions, read_conditions
from ipitrace.host.interrupts import (
    delta,
    read_interrupts,
)
from ipitrace.measure.steadiness import (
    NO_LOOKS,
    Looks,
)
from ipitrace.storm.driver import Driver, Hooks, Storm, StormRequest
from ipitrace.storm.plausible import run_plausible
from ipitrace.summary import HostSide
from ipitrace.tracer.session import Tracer
from ipitrace.words.events import (
    NR_KINDS,
    Kind,
)
from ipitrace.words.scenarios import (
    SENDER,
    Mode,
)
from ipitrace.words.stages import Stage

_SANDWICH_EVERY_S = 0.02
_ON_ITS_CPU = (Kind.KVM_ENTRY, Kind.KVM_EXIT, Kind.SCHED_SWITCH)

# Host events kept of one repetition. 2 to 17 an IPI were seen (tests/data/recordings); what
# else a guest does meanwhile is its own choice, and must not take this host's memory.
_EVENTS_PER_IPI = 64
_OTHER_EVENTS = 1_000_000

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
        seen: host events per kind and vCPU from the first measured send to the last
            acknowledgement, shape (kinds, n_vcpus); None where that is not known.
        switches: of the vCPUs' threads, in what was recorded.
        looks: at the conditions before and after.
    """

    storm: Storm
    mode: Mode
    watched: HostSide | None
    trace: StormTrace | None
    no_trace_reason: str | None
    violations: Mapping[str, int]
    sandwiches: tuple[Sandwich, ...]
    seen: NDArray[np.int64] | None = None
    switches: Switches = NO_SWITCHES
    looks: Looks = NO_LOOKS


class _Onlooker:
    """Looks before the vCPUs run and after they have; in between it only notes when ticks come."""

    def __init__(self, cpus: Collection[int]) -> None:
        self._cpus = cpus
        self._tids: Sequence[int] = ()
        self._start: Conditions | None = None
        self._end: Conditions | None = None
        self._last_tick_s: float | None = None
        self._longest_tick_s = 0.0

    def threads_known(self, tids: Sequence[int]) -> None:
        self._tids = tuple(tids)
        self._start = read_conditions(self._tids, self._cpus)
        self._last_tick_s = time.monotonic()

    def tick(self) -> None:
        now_s = time.monotonic()
        if self._last_tick_s is not None:
            self._longest_tick_s = max(self._longest_tick_s, now_s - self._last_tick_s)
        self._last_tick_s = now_s

    def over(self) -> None:
        self.tick()
        self._end = read_conditions(self._tids, self._cpus)

    def looks(self, events: NDArray[np.void] | None = None) -> Looks:
        return Looks(self._start, self._end, self._longest_tick_s, _seen_on(events))


def _seen_on(events: NDArray[np.void] | None) -> dict[int, dict[int, int]]:
    """CPU to events, by vCPU; of those events alone that happen where its thread is."""
    if events is None:
        return {}
    own = events[np.isin(events["kind"], _ON_ITS_CPU)]
    pairs, counts = np.unique(
        np.stack([own["vcpu"], own["cpu"]]).astype(np.int64), axis=1, return_counts=True
    )
    found: dict[int, dict[int, int]] = {}
    for vcpu, cpu, n in zip(*pairs, counts, strict=True):
        found.setdefault(int(vcpu), {})[int(cpu)] = int(n)
    return found


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
        HostError, MeasurementError: as run_plausible().
    """
    reader = _ClockReader(clock)
    onlooker = _Onlooker(guest.pinned_cpus or ())

    def known(tids: Sequence[int]) -> None:
        if tracer is not None and mode != Mode.OFF:
            tracer.set_vcpu_threads(tids)
        onlooker.threads_known(tids)

    def tick(sent: int) -> None:
        onlooker.tick()
        reader.read()
        if tracer is not None and mode == Mode.FULL:
            tracer.drain()
        told(sent)

    reader.read(now=True)
    if tracer is None or mode == Mode.OFF:
        storm = run_plausible(
            guest, request, Hooks(threads_known=known, tick=tick, over=onlooker.over)
        )
        reader.read(now=True)
        sandwiches, looks = tuple(reader.sandwiches), onlooker.looks()
        return Recorded(storm, mode, None, None, None, {}, sandwiches, looks=looks)
    lost_before = _events_lost(tracer)
    ipis = (request.warmup + request.count) * len(guest.targets(request.scenario))
    tracer.keep_at_most(_OTHER_EVENTS + _EVENTS_PER_IPI * ipis)
    hooks = Hooks(threads_known=known, mark=tracer.seen, tick=tick, over=onlooker.over)
    before = read_interrupts()
    storm = run_plausible(guest, request, hooks)
    after = read_interrupts()
    interrupts = delta(before, after) if before is not None and after is not None else None
    reader.read(now=True)
    sandwiches = tuple(reader.sandwiches)
    if mode == Mode.COUNTING:
        looks = onlooker.looks()
        return Recorded(storm, mode, None, None, None, {}, sandwiches, storm.counted, looks=looks)
    tracer.drain()
    events = tracer.take()
    looks = onlooker.looks(events)
    during = (
        (reader.sandwiches[0].ts_ns, reader.sandwiches[-1].ts_ns) if reader.sandwiches else None
    )
    try:
        trace = _on_one_clock(
            request,
            guest,
            storm,
            events,
            complete=_events_lost(tracer) == lost_before,
            during=during,
            sandwiches=[*earlier, *reader.sandwiches],
            resolution_ns=1 if clock is None else clock.resolution_ns,
        )
    except MeasurementError as error:
        why = error.message
        return Recorded(storm, mode, None, None, why, {}, sandwiches, storm.counted, looks=looks)
    spans = correlate(trace)
    return Recorded(
        storm,
        mode,
        HostSide(spans, exit_tables(trace, spans), interrupts),
        trace,
        None,
        _violations(spans, trace.bound_cycles),
        sandwiches,
        _seen(trace.events, storm),
        count_switches(events),
        looks,
    )


def _seen(events: NDArray[np.void], storm: Storm) -> NDArray[np.int64]:
    """Events of the window by kind and vCPU: as counted, else those that left a record."""
    if storm.counted is not None:
        return storm.counted
    seen = np.zeros((NR_KINDS, len(storm.receipts)), np.int64)
    np.add.at(seen, (events["kind"], events["vcpu"]), 1)
    return seen


def _on_one_clock(
    request: StormRequest,
    guest: Driver,
    storm: Storm,
    events: NDArray[np.void],
    *,
    complete: bool,
    during: Span | None,
    sandwiches: list[Sandwich],
    resolution_ns: int,
) -> StormTrace:
    """Put the host events of the measured window on the guest's clock.

    The window is the driver's, where it was there at its edges. Else it is found here: from
    the first measured send to the end of the last one's story, by the guest's own stamps.
    `during` is when the storm ran, and more.

    Raises:
        MeasurementError: that cannot be done; the message says why.
    """
    host_map = HostClockMap.build(sandwiches, resolution_ns)
    guest_tsc = _guest_tsc(storm, host_map.cycles_per_ns * 1e9)

    def to_guest(ts_ns: object) -> NDArray[np.int64]:
        mapped: NDArray[np.int64] = guest_tsc.to_guest(host_map.to_tsc(ts_ns)).view(np.int64)  # type: ignore[arg-type]
        return mapped

    def bound_of(stamps: NDArray[np.int64]) -> int:
        return int(np.ceil(host_map.bound_cycles(stamps).max(initial=0.0) * guest_tsc.scale))

    stamps = events["ts_ns"]
    if storm.start is not None and storm.end is not None:
        window = (storm.start.ts_ns, storm.end.ts_ns)
        inside = (stamps >= window[0]) & (stamps <= window[1])
    else:
        window = during or (0, 0)
        low, high = _edges(storm)
        slack = bound_of(np.array([*window, *stamps]))
        tsc = to_guest(stamps)
        inside = (tsc >= low - slack) & (tsc <= high + slack)
    measured = events[inside]
    writes = events[events["kind"] == Kind.KVM_WRITE_TSC_OFFSET]["ts_ns"]
    changes = [
        change
        for start, end in zip(storm.tsc_offsets_start, storm.tsc_offsets_end, strict=True)
        for change in offset_changes(start, end, window, [int(w) for w in writes])
    ]
    if len(set(storm.tsc_offsets_start)) > 1:
        raise MeasurementError("The vCPUs' TSC offsets differ.", "Boot with a stable TSC.")
    return StormTrace(
        sends=storm.sends,
        receipts=storm.receipts,
        sender=SENDER,
        targets=guest.targets(request.scenario),
        vector=storm.vector,
        events=measured,
        event_tsc=to_guest(measured["ts_ns"]),
        bound_cycles=bound_of(np.array([*window, *measured["ts_ns"]])),
        cpus=guest.pinned_cpus,
        complete=complete,
        exits_fire=bool((events["kind"] == Kind.KVM_EXIT).any()),
        suspect=[(int(low), int(high)) for low, high in (to_guest(np.array(c)) for c in changes)],
        apic_ids=guest.apic_ids,
    )


def _guest_tsc(storm: Storm, host_hz: float) -> GuestTsc:
    """How the guest's TSC follows from the host's.

    Raises:
        MeasurementError: that is not known.
    """
    if storm.tsc_offset is not None and storm.tsc_ratio is not None:
        return GuestTsc(storm.tsc_offset, *storm.tsc_ratio)
    tsc, reason = own_guest_tsc(storm.tsc_offset, storm.tsc_khz, host_hz)
    if tsc is None:
        raise MeasurementError(f"The guest's TSC is not known: {storm.no_tsc or reason}.", "")
    return tsc


def _edges(storm: Storm) -> tuple[int, int]:
    """The first measured send, and the last stamp the guest took of the storm."""
    stamps = [storm.sends["sent_tsc"], storm.sends["ack_tsc"]]
    stamps += [receipts[name] for receipts in storm.receipts for name in ("handler_tsc", "eoi_tsc")]
    last = max(int(s.astype(np.int64).max()) for s in stamps if len(s))
    return int(storm.sends["send_tsc"].astype(np.int64).min()), last


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
