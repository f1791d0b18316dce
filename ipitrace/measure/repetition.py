# SPDX-License-Identifier: Apache-2.0
"""One repetition: one storm, traced in one mode, with all stamps on one clock."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ipitrace.base.errors import MeasurementError
from ipitrace.clock import Clock, Sandwich
from ipitrace.correlate.exits import exit_tables
from ipitrace.correlate.spans import StormTrace, correlate, joined
from ipitrace.correlate.switches import NO_SWITCHES, Switches, count_switches, of_others
from ipitrace.correlate.weights import TwinDistance
from ipitrace.host.interrupts import InterruptDelta, delta, read_interrupts
from ipitrace.measure.one_clock import HostRecord, on_one_clock, violations
from ipitrace.measure.sharing import Sharing
from ipitrace.measure.steadiness import NO_LOOKS, Looks
from ipitrace.measure.tracers import Tracers
from ipitrace.measure.watching import ClockReader, Onlooker
from ipitrace.storm.driver import Driver, Hooks, Storm, StormRequest
from ipitrace.storm.plausible import run_plausible
from ipitrace.summary import HostSide, Waited
from ipitrace.tracer.session import Tracer
from ipitrace.tracer.sizes import DrainPace
from ipitrace.words.events import NR_KINDS, Kind
from ipitrace.words.scenarios import Mode, Scenario, routes_of

# Limits of the host events that are kept of one repetition. The recordings in
# tests/data/recordings have 2 to 17 per IPI. A guest can cause any number of other events; the
# limit protects this host's memory.
_EVENTS_PER_IPI: Final = 64
_OTHER_EVENTS: Final = 1_000_000
_FASTEST_SEND_CYCLES: Final = 1_000  # of a round trip; a VM exit alone takes about as long
_RECORDS_PER_IPI: Final = 2  # in one ring: the recordings above have two kvm_eoi in the target's


@dataclass(frozen=True)
class Recorded:
    """A storm and the data recorded about it.

    Attributes:
        watched: None if nothing was traced, or not all stamps could be put on one clock.
        trace: the data from which `watched` was made, for the recording.
        no_trace_reason: why `watched` is None although the repetition was traced.
        twins: the distances of both tracers' stamps, by kind of event; empty unless the mode was
            EVIDENCE.
        violations: effects before their causes, by kind.
        sandwiches: readings of both host clocks during the repetition.
        seen: host events per kind and vCPU from the first measured send to the last
            acknowledgement, shape (kinds, n_vcpus); None if unknown.
        uncounted: events that were not attached in this repetition, but are in others.
        switches: recorded context switches of the vCPUs' threads.
        looks: host state before and after the storm.
    """

    storm: Storm
    mode: Mode
    watched: HostSide | None = None
    trace: StormTrace | None = None
    no_trace_reason: str | None = None
    violations: Mapping[str, int] = field(default_factory=dict)
    sandwiches: tuple[Sandwich, ...] = ()
    seen: NDArray[np.int64] | None = None
    uncounted: frozenset[Kind] = frozenset()
    switches: Switches = NO_SWITCHES
    twins: Mapping[Kind, TwinDistance] = field(default_factory=dict)
    looks: Looks = NO_LOOKS


def run_repetition(
    request: StormRequest,
    guest: Driver,
    *,
    tracers: Tracers | None,
    mode: Mode,
    clock: Clock | None,
    told: Callable[[int], None],
    earlier: Sequence[Sandwich] = (),
) -> Recorded:
    """Run one storm; with tracers, in the given mode.

    Args:
        request: the storm.
        guest: the driver of the guest in which it runs.
        tracers: None traces nothing.
        mode: which of the tracers are attached. Their programs already are.
        clock: this host's clocks; None if they cannot be read.
        told: called at each tick with the number of sends; an exception from it ends the storm.
        earlier: the latest readings of the clocks before the storm. The storm alone may be
            too short for exact rates.

    Raises:
        HostError, MeasurementError: see run_plausible().
    """
    attached = () if tracers is None else tracers.attached_in(mode)
    reader = ClockReader(clock)
    onlooker = Onlooker(guest.cpus_in(request.scenario) or ())
    n_targets = len(guest.targets(request.scenario))
    rate = _most_records_per_s(request, n_targets)
    paces = [DrainPace(tracer.slots_per_ring, rate) for tracer in attached]
    sharing = Sharing(guest, request.scenario, mode)

    def known(tids: Sequence[int]) -> None:
        for tracer in attached:
            tracer.set_vcpu_threads(tids, sharing.cpus if tracer is attached[-1] else ())
        onlooker.threads_known(tids)
        sharing.threads_known(tids)

    def tick(sent: int) -> float | None:
        onlooker.tick()
        reader.read()
        told(sent)
        pauses_s = [
            pace.drained(tracer.drain(), time.monotonic())
            for tracer, pace in zip(attached, paces, strict=True)
        ]
        sharing.drained(attached)
        return min(pauses_s, default=None)

    hooks = Hooks(threads_known=known, tick=tick, over=onlooker.over)
    reader.read(now=True)
    if not attached:
        storm = run_plausible(guest, request, hooks)
        reader.read(now=True)
        sandwiches = tuple(reader.sandwiches)
        return Recorded(storm, mode, sandwiches=sandwiches, looks=onlooker.looks())
    *lighter, traced = attached
    lost_before = _events_lost(traced)
    ipis = (request.warmup + request.count) * n_targets
    for tracer in attached:
        tracer.keep_at_most(_OTHER_EVENTS + _EVENTS_PER_IPI * ipis)
    uncounted = traced.left_detached
    before = read_interrupts()
    storm = run_plausible(guest, request, replace(hooks, mark=traced.seen))
    after = read_interrupts()
    interrupts = delta(before, after) if before is not None and after is not None else None
    reader.read(now=True)
    sandwiches = tuple(reader.sandwiches)
    counted = Recorded(storm, mode, sandwiches=sandwiches, seen=storm.counted, uncounted=uncounted)
    events = _rest(traced)
    own = events[~of_others(events)]
    if lighter and tracers is not None:
        counted = replace(counted, twins=tracers.twins(_rest(lighter[0]), own))
    host = HostRecord(
        events=events,
        complete=_events_lost(traced) == lost_before,
        during=(sandwiches[0].ts_ns, sandwiches[-1].ts_ns) if sandwiches else None,
        sandwiches=[*earlier, *sandwiches],
        resolution_ns=1 if clock is None else clock.resolution_ns,
        stages_only=mode == Mode.STAGES,
    )
    counted = replace(counted, looks=onlooker.looks(own))
    try:
        trace = on_one_clock(request, guest, storm, host)
    except MeasurementError as error:
        return replace(counted, no_trace_reason=error.message)
    waited = sharing.waited(trace, events, counted.looks)
    counted = replace(counted, switches=count_switches(own))
    return _with_trace(counted, request.scenario, _of_vcpus(trace), interrupts, waited)


def _rest(tracer: Tracer) -> NDArray[np.void]:
    """The events of the storm that is over."""
    tracer.drain()
    return tracer.take()


def _most_records_per_s(request: StormRequest, n_targets: int) -> float:
    """The most records per second of one ring that the storm's own IPIs can cause."""
    sends_per_s = request.tsc_hz / (request.pace_cycles + _FASTEST_SEND_CYCLES)
    return sends_per_s * n_targets * _RECORDS_PER_IPI


def _with_trace(
    counted: Recorded,
    scenario: Scenario,
    trace: StormTrace,
    interrupts: InterruptDelta | None,
    waited: Waited | None,
) -> Recorded:
    """The same repetition with the results of its host events, on the guest's clock."""
    routes = routes_of(scenario.pattern, trace.targets)
    spans = joined([correlate(trace.of_route(route)) for route in routes])
    return replace(
        counted,
        watched=HostSide(spans, exit_tables(trace, spans), interrupts, waited),
        trace=trace,
        violations=violations(spans, trace.bound_cycles),
        seen=_seen(trace.events, counted.storm),
    )


def _of_vcpus(trace: StormTrace) -> StormTrace:
    """The same without the switches between other threads."""
    own = ~of_others(trace.events)
    return replace(trace, events=trace.events[own], event_tsc=trace.event_tsc[own])


def _seen(events: NDArray[np.void], storm: Storm) -> NDArray[np.int64]:
    """Events of the measured window by kind and vCPU, from the counters if they were read."""
    if storm.counted is not None:
        return storm.counted
    seen = np.zeros((NR_KINDS, len(storm.receipts)), np.int64)
    np.add.at(seen, (events["kind"], events["vcpu"]), 1)
    return seen


def _events_lost(tracer: Tracer) -> int:
    """The number of events lost so far, without misses that the kernel does not count."""
    losses = tracer.losses()
    misses = sum(n or 0 for n in losses.recursion_misses.values())
    return sum(losses.ring_overruns.values()) + misses
