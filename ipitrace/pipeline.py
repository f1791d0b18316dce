# SPDX-License-Identifier: Apache-2.0
"""A run from probing the host to the finished result, step by step; plain data in and out."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import ipitrace
from ipitrace.clock import Clock, Sandwich, measure_frequency, tsc_went_backwards
from ipitrace.errors import (
    HostError,
    InterruptedRunError,
    IpitraceError,
    MeasurementError,
    UsageError,
)
from ipitrace.host.access import (
    require_initial_pid_namespace,
    require_kvm,
    require_trace_privilege,
)
from ipitrace.host.cpus import Pinning, allowed_cpus, choose_cpus, read_topology
from ipitrace.host.fingerprint import one_line, read_fingerprint
from ipitrace.host.neighbours import read_neighbours
from ipitrace.model import Scenario, StormRequest, TargetState
from ipitrace.result import ClockResult, Losses, Observer, RunResult, ScenarioResult
from ipitrace.storm.driver import Driver, Hooks
from ipitrace.storm.micro.driver import MAX_VCPUS, MIN_VCPUS, MicroGuest, max_count
from ipitrace.summary import (
    Measured,
    Repetition,
    TraceWindow,
    deliveries,
    observer_costs,
    summarise_scenario,
)
from ipitrace.tracer.session import Tracer
from ipitrace.units import NS_PER_S, cycles_to_ns

WARMUP = 100
PAIRS = 2
_ABBA = "untraced, traced, traced, untraced"
_PACE_CYCLES = 60_000  # long enough for a target to be back in its waiting loop
_BLOCKED_S = 0.0005  # and longer than any host polls, see _pace()
_LOSS_LIMIT = 0.001

Progress = Callable[[str, float], None]
"""Told which scenario runs and what share (0..1) of the whole run is done."""


@dataclass(frozen=True)
class RunRequest:
    """What `ipitrace run` was asked for.

    Attributes:
        n_vcpus: of the micro-guest.
        scenarios: in the order to run.
        count: measured sends of each scenario.
        pace_cycles: from one acknowledgement to the next send; None lets the scenario choose.
        trace: attach BPF programs and find their cost, or run without any.
        command: the command line, for the record.
        inject: a fault made on purpose, to prove that it is told.
    """

    n_vcpus: int
    scenarios: tuple[Scenario, ...]
    count: int
    pace_cycles: int | None
    trace: bool
    command: tuple[str, ...] = ()
    inject: str | None = None


@dataclass
class _Run:
    """What a run has gathered so far."""

    clock: Clock | None
    sandwiches: list[Sandwich] = field(default_factory=list)
    measured: list[Measured] = field(default_factory=list)
    rows: list[ScenarioResult] = field(default_factory=list)
    failure: IpitraceError | None = None

    def read_clocks(self) -> None:
        """Take one more sandwich, where they can be taken."""
        if self.clock is not None:
            self.sandwiches.append(self.clock.sandwich())


def check_request(request: RunRequest) -> None:
    """See that the request can be carried out at all.

    Raises:
        UsageError: a number is out of its range.
    """
    if not MIN_VCPUS <= request.n_vcpus <= MAX_VCPUS:
        raise UsageError(
            f"The micro-guest cannot have {request.n_vcpus} vCPUs.",
            f"Ask for {MIN_VCPUS} to {MAX_VCPUS}, for instance --vm micro:4.",
        )
    most = max_count(request.n_vcpus) - WARMUP
    if not 1 <= request.count <= most:
        raise UsageError(
            f"--count {request.count} is out of range.",
            f"Ask for 1 to {most:,} IPIs (what the logs of {request.n_vcpus} vCPUs hold).",
        )
    if request.pace_cycles is not None and not 0 <= request.pace_cycles <= NS_PER_S:
        raise UsageError(
            f"--pace {request.pace_cycles} is out of range.",
            f"Ask for 0 to {NS_PER_S:,} cycles.",
        )


def run(request: RunRequest, progress: Progress) -> tuple[RunResult, IpitraceError | None]:
    """Measure, and answer what was found, with the error that cut it short if one did.

    Raises:
        UsageError, HostError: nothing could be measured at all.
    """
    check_request(request)
    require_kvm()
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    started_s = time.monotonic()
    pinning = choose_cpus(request.n_vcpus, allowed_cpus(), read_topology())
    guest = MicroGuest.prepare(request.n_vcpus, pinning.cpus)
    if all(guest.unsupported(scenario) for scenario in request.scenarios):
        first = request.scenarios[0]
        raise HostError(
            f"The scenario '{first.name}' cannot run here: {guest.unsupported(first)}.",
            "See 'ipitrace scenarios' for those that can.",
        )
    with contextlib.ExitStack() as stack:
        tracer = stack.enter_context(_load_tracer(request)) if request.trace else None
        gathered = _Run(_open_clock())
        _run_scenarios(request, guest, tracer, gathered, progress)
        losses = _losses(gathered, tracer)
        observer = None if tracer is None else _observer(gathered, tracer)
    clock = _clock_result(gathered)
    result = RunResult(
        ipitrace_version=ipitrace.__version__,
        started_at=started_at,
        duration_seconds=round(time.monotonic() - started_s, 3),
        command=request.command,
        complete=gathered.failure is None,
        failure=None if gathered.failure is None else gathered.failure.message,
        untrustworthy=tuple(_doubts(gathered, losses, clock)),
        host=_host(pinning),
        guest=guest.describe(),
        clock=clock,
        losses=losses,
        observer=observer,
        observer_absent=None if observer else "nothing was traced (--no-trace)",
        scenarios=tuple(gathered.rows),
    )
    return result, gathered.failure


def _load_tracer(request: RunRequest) -> Tracer:
    require_trace_privilege()
    require_initial_pid_namespace()
    return Tracer.load(pid=os.getpid(), n_vcpus=request.n_vcpus)


def _open_clock() -> Clock | None:
    try:
        return Clock()
    except OSError:
        return None


def _run_scenarios(
    request: RunRequest,
    guest: Driver,
    tracer: Tracer | None,
    gathered: _Run,
    progress: Progress,
) -> None:
    """Run every scenario that the guest can; what was finished stays when one fails."""
    share = 1 / len(request.scenarios)
    gathered.read_clocks()
    try:
        for i, scenario in enumerate(request.scenarios):
            reason = guest.unsupported(scenario)
            if reason is not None:
                gathered.rows.append(_unsupported(scenario, reason))
                continue

            def told(done: float, name: str = scenario.name, before: float = i * share) -> None:
                progress(name, before + share * done)

            measured = _measure(request, scenario, guest, tracer, told)
            gathered.read_clocks()
            gathered.measured.append(measured)
            gathered.rows.append(summarise_scenario(measured))
    except KeyboardInterrupt:
        gathered.failure = InterruptedRunError(
            "Interrupted.", "What was finished until then is kept."
        )
    except MeasurementError as error:
        gathered.failure = error


def _unsupported(scenario: Scenario, reason: str) -> ScenarioResult:
    return ScenarioResult(
        name=scenario.name,
        pattern=scenario.pattern,
        target_state=scenario.target_state,
        send_method=scenario.send_method,
        status="unsupported",
        reason=reason,
    )


def _measure(
    request: RunRequest,
    scenario: Scenario,
    guest: Driver,
    tracer: Tracer | None,
    told: Callable[[float], None],
) -> Measured:
    """Run one scenario's repetitions: traced and untraced ones in turn, ABBA."""
    order = _repetition_order(request.count) if tracer is not None else ((False, request.count),)
    pace_cycles = _pace(request, scenario)
    repetitions = []
    total = sum(count for _traced, count in order)
    done = 0
    for traced, count in order:
        storm_request = StormRequest(
            scenario,
            guest.n_vcpus,
            count,
            WARMUP,
            pace_cycles,
            inject=request.inject,
        )

        def tick(sent: int, before: int = done) -> None:
            told((before + max(sent - WARMUP, 0)) / total)

        if tracer is not None and traced:
            repetitions.append(_traced(storm_request, guest, tracer, tick))
        else:
            repetitions.append(Repetition(guest.run(storm_request, Hooks(tick=tick)), None))
        done += count
    return Measured(scenario, guest.targets(scenario), pace_cycles, WARMUP, tuple(repetitions))


def _repetition_order(count: int) -> tuple[tuple[bool, int], ...]:
    """(traced?, sends) of each repetition: `count` sends are traced, as many are not."""
    pairs = min(PAIRS, count)
    order: list[tuple[bool, int]] = []
    for i in range(pairs):
        sends = count // pairs + (i < count % pairs)
        pair = [(False, sends), (True, sends)]
        order += pair if i % 2 == 0 else reversed(pair)
    return tuple(order)


def _pace(request: RunRequest, scenario: Scenario) -> int:
    """The pace asked for, or one that brings about the target's state.

    A blocked target must stay in HLT for longer than the host polls for it
    (kvm.halt_poll_ns, 200 us by default).
    """
    if request.pace_cycles is not None:
        return request.pace_cycles
    if scenario.target_state != TargetState.BLOCKED:
        return _PACE_CYCLES
    parameters = read_fingerprint().kvm_parameters or {}
    polled_s = int(parameters.get("kvm.halt_poll_ns", "0") or 0) / NS_PER_S
    return int((2 * polled_s + _BLOCKED_S) * 3e9)


@contextlib.contextmanager
def _attached(tracer: Tracer) -> Iterator[None]:
    tracer.attach()
    try:
        yield
    finally:
        tracer.detach()


def _traced(
    request: StormRequest, guest: Driver, tracer: Tracer, told: Callable[[int], None]
) -> Repetition:
    def tick(sent: int) -> None:
        tracer.drain()
        told(sent)

    hooks = Hooks(threads_known=tracer.set_vcpu_threads, mark=tracer.seen, tick=tick)
    with _attached(tracer):
        storm = guest.run(request, hooks)
    tracer.drain()
    events = tracer.take()
    inside = (events["ts_ns"] >= storm.start.ts_ns) & (events["ts_ns"] <= storm.end.ts_ns)
    if storm.start.events_seen is None or storm.end.events_seen is None:
        raise ValueError("the driver did not call the mark hook")
    seen = storm.end.events_seen - storm.start.events_seen
    return Repetition(storm, TraceWindow(seen, events[inside]))


def _losses(gathered: _Run, tracer: Tracer | None) -> Losses:
    storms = [r.storm for m in gathered.measured for r in m.repetitions]
    unpaired = sum(
        d.unpaired
        for m in gathered.measured
        for r in m.repetitions
        for d in deliveries(r.storm, m.targets)
    )
    incomplete = sum(storm.incomplete for storm in storms)
    if tracer is None:
        return Losses(0, {}, {}, incomplete, unpaired)
    lost = tracer.losses()
    return Losses(
        int(tracer.seen().sum()),
        {name: n for name, n in lost.ring_overruns.items() if n},
        {name: n for name, n in lost.recursion_misses.items() if n or n is None},
        incomplete,
        unpaired,
    )


def _observer(gathered: _Run, tracer: Tracer) -> Observer:
    return Observer(
        method=f"fresh guests in the order {_ABBA}; difference between neighbours",
        pairs=PAIRS,
        costs={m.scenario.name: observer_costs(m) for m in gathered.measured},
        setup_seconds=round(tracer.load_s, 3),
        attach_seconds=round(tracer.attach_s, 3),
        hooks=dict(tracer.hooks),
        left_out=dict(tracer.left_out),
    )


def _clock_result(gathered: _Run) -> ClockResult:
    storms = [r.storm for m in gathered.measured for r in m.repetitions]
    kvm_tsc_khz = storms[0].tsc_khz if storms else None
    frequency = measure_frequency(gathered.sandwiches)
    hz = frequency.hz if frequency else kvm_tsc_khz and kvm_tsc_khz * 1000.0
    widths = [s.half_width_cycles for s in gathered.sandwiches]
    early = sum(
        d.before_send
        for m in gathered.measured
        for r in m.repetitions
        for d in deliveries(r.storm, m.targets)
    )
    return ClockResult(
        tsc_hz=hz,
        tsc_error_hz=frequency.error_hz if frequency else None,
        source=_clock_source(hz, measured=frequency is not None),
        kvm_tsc_khz=kvm_tsc_khz,
        guest_tsc_offset=storms[0].tsc_offset if storms else None,
        sandwiches=len(gathered.sandwiches),
        half_width_cycles=max(widths, default=None),
        half_width_ns=cycles_to_ns(max(widths), hz) if widths and hz else None,
        causality_violations={
            "handler_before_send": early,
            "tsc_backwards": int(tsc_went_backwards(gathered.sandwiches)),
        },
    )


def _clock_source(hz: float | None, *, measured: bool) -> str | None:
    if hz is None:
        return None
    return "measured against CLOCK_MONOTONIC" if measured else "KVM_GET_TSC_KHZ"


def _doubts(gathered: _Run, losses: Losses, clock: ClockResult) -> Sequence[str]:
    """Why the numbers should not be relied on."""
    doubts = []
    if losses.events_lost > _LOSS_LIMIT * max(losses.events_seen, 1):
        doubts.append(f"{losses.events_lost} of {losses.events_seen} host events were lost")
    sends = sum(row.sent for row in gathered.rows)
    if losses.incomplete_ipis > _LOSS_LIMIT * sends:
        doubts.append(f"{losses.incomplete_ipis} IPIs were not acknowledged in time")
    doubts += [
        f"the clocks contradict each other: {kind} {n} times"
        for kind, n in clock.causality_violations.items()
        if n
    ]
    return doubts


def _host(pinning: Pinning) -> dict[str, object]:
    fingerprint = read_fingerprint()
    return {
        "one_line": one_line(fingerprint),
        "fingerprint": fingerprint.to_dict(),
        "neighbours": read_neighbours().to_dict(),
        "pinning": {"overcommitted": pinning.overcommitted, "why": pinning.why},
    }
