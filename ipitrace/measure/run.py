# SPDX-License-Identifier: Apache-2.0
"""A run from probing the host to the finished result, step by step; plain data in and out."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from numpy.typing import NDArray

from ipitrace.base.errors import (
    NOTHING_WRITTEN,
    HostError,
    InterruptedRunError,
    IpitraceError,
    MeasurementError,
    UsageError,
)
from ipitrace.base.signals import finish_undisturbed
from ipitrace.base.units import NS_PER_S
from ipitrace.base.version import VERSION
from ipitrace.clock import Clock, GuestTsc, Sandwich, measure_frequency, stamp_resolution_ns
from ipitrace.correlate.switches import NO_SWITCHES, Switches
from ipitrace.host.access import (
    NO_TRACE,
    require_initial_pid_namespace,
    require_trace_privilege,
)
from ipitrace.host.conditions import read_conditions
from ipitrace.host.cpus import Pinning
from ipitrace.host.files import HOST, HostFiles
from ipitrace.host.fingerprint import one_line, read_fingerprint
from ipitrace.host.neighbours import Neighbours, read_neighbours
from ipitrace.host.runs import announced
from ipitrace.measure.columns import (
    GUEST_IPI_MEANINGS,
    HOST_EVENT_MEANINGS,
    SPAN_MEANINGS,
    RepetitionKey,
    guest_ipi_columns,
    host_event_columns,
    span_columns,
)
from ipitrace.measure.guests import Guest
from ipitrace.measure.limits import (
    FASTEST_TSC_HZ,
    Budget,
    check_time,
    chosen_limits,
    limited_pace,
)
from ipitrace.measure.lookout import Lookout
from ipitrace.measure.repetition import (
    Recorded,
    run_repetition,
)
from ipitrace.measure.steadiness import (
    cpus_of,
    silence,
)
from ipitrace.measure.trust import (
    clock_result,
    doubts,
)
from ipitrace.measure.turns import (
    Turn,
    plan_turns,
    split,
)
from ipitrace.recording.disturbances import describe_disturbances
from ipitrace.recording.result import (
    Losses,
    Observer,
    RunLimits,
    RunResult,
    ScenarioResult,
)
from ipitrace.storm.driver import Driver, StormRequest
from ipitrace.summary import (
    Measured,
    Repetition,
    observer_costs,
    reduce_storm,
    summarise_scenario,
)
from ipitrace.summary.stats import interval_confidence
from ipitrace.tracer.session import Tracer
from ipitrace.words.events import Kind
from ipitrace.words.scenarios import (
    SCENARIOS,
    SENDER,
    Mode,
    Scenario,
    ScenarioStatus,
    TargetState,
)

WARMUP = 100
REPETITIONS = 6  # the least whose extremes enclose the median with 95 % confidence
MAX_REPETITIONS = 1000
MAX_OF_ALL_SCENARIOS = 4000  # what is read of run.json holds them (recording.MOST_RUN_BYTES)
_MOST_SENDS = 250_000  # of one repetition: bounds the memory that its events take
_METHOD = (
    "repetitions in turn: off, counting, full; full, counting, off; and so on; the scenarios "
    "take turns, too, in an order shuffled by the run's seed and mirrored"
)
_PACE_CYCLES = 60_000  # long enough for a target to be back in its waiting loop
_RATE_S = 0.02
_EARLIER = 32  # readings of the clocks that the next repetition's map starts from
_LOOK_EVERY_S = 1.0  # whether the vCPUs' CPUs are there: 0.1 ms of the controller's time
_BLOCKED_S = 0.0005  # and longer than any host polls, see _pace()
_KEPT = "What was finished until then is kept."
_NOTHING = "Nothing was finished until then."

Progress = Callable[[str, float], None]
"""Told which scenario runs and what share (0..1) of the whole run is done."""


class Sink(Protocol):
    """Where rows of the recording go as they come."""

    def append(
        self, table: str, columns: Mapping[str, NDArray[Any]], meanings: Mapping[str, str]
    ) -> None:
        """Add rows to a table."""


@dataclass(frozen=True)
class RunRequest:
    """What `ipitrace run` was asked for.

    Attributes:
        scenarios: in the order to run.
        count: measured sends of each scenario.
        pace_cycles: from one acknowledgement to the next send; None lets the scenario choose.
        trace: attach BPF programs and find their cost, or run without any.
        command: the command line, for the record.
        inject: a fault made on purpose, to prove that it is told.
        repeat: fresh guests of each scenario and mode, among which `count` is shared out.
        seed: of the order in which scenarios take turns.
        handler_burn_cycles: cycles each handler wastes, to prove that they are found.
        max_rate_hz: sends per second at most; 0 is no limit, None what the guest's kind has.
        max_time_s: seconds of storms at most; likewise.
    """

    scenarios: tuple[Scenario, ...]
    count: int
    pace_cycles: int | None
    trace: bool
    command: tuple[str, ...] = ()
    inject: str | None = None
    repeat: int = REPETITIONS
    seed: int = 0
    handler_burn_cycles: int = 0
    max_rate_hz: float | None = None
    max_time_s: float | None = None


@dataclass
class _Taken:
    """The repetitions of one scenario so far, in the order run."""

    scenario: Scenario
    pace_cycles: int
    repetitions: list[Repetition] = field(default_factory=list)
    notes: set[str] = field(default_factory=set)
    switches: Switches = NO_SWITCHES
    bound_cycles: int = 0

    def all_notes(self) -> Iterator[str]:
        """What a reader should know before trusting the scenario's row."""
        yield from sorted(self.notes)
        if unseen := self.switches.unseen:
            happened = self.switches.seen + unseen
            yield (
                f"{unseen} of {happened} switches of the vCPUs' threads were not seen; an IPI may "
                "lack sched_in"
            )


@dataclass
class _Run:
    """What a run has gathered so far."""

    request: RunRequest
    guest: Driver
    tracer: Tracer | None
    clock: Clock | None
    sink: Sink
    progress: Progress
    limits: RunLimits | None
    tsc_hz: float
    budget: Budget
    taken: dict[str, _Taken] = field(default_factory=dict)
    measured: list[Measured] = field(default_factory=list)
    rows: list[ScenarioResult] = field(default_factory=list)
    sandwiches: list[Sandwich] = field(default_factory=list)
    violations: dict[str, int] = field(default_factory=dict)
    bound_cycles: int = 0
    repetitions: int = 0
    lookout: Lookout | None = None
    ipis: int = 0
    tsc_khz: int | None = None
    tsc_offset: int | None = None
    tsc_scale: float = 1.0
    incomplete: int = 0
    failure: IpitraceError | None = None
    next_look_s: float = 0.0

    def finished(self, modes: tuple[Mode, ...]) -> list[Measured]:
        """The scenarios of which something was finished, as far as it was in all modes."""
        found = []
        fires = self.tracer is not None and bool(self.tracer.seen()[Kind.KVM_EXIT].any())
        for taken in self.taken.values():
            whole = len(taken.repetitions) // len(modes) * len(modes)
            if whole:
                found.append(
                    Measured(
                        taken.scenario,
                        self.guest.targets(taken.scenario),
                        taken.pace_cycles,
                        WARMUP,
                        taken.bound_cycles,
                        tuple(taken.repetitions[:whole]),
                        tuple(taken.all_notes()),
                        kvm_exit_fires=fires,
                    )
                )
        return found


def check_request(request: RunRequest) -> None:
    """See that the request can be carried out by some guest at all.

    Raises:
        UsageError: a number is out of its range.
    """
    if not 1 <= request.repeat <= MAX_REPETITIONS:
        raise UsageError(
            f"--repeat {request.repeat} is out of range.",
            f"Ask for 1 to {MAX_REPETITIONS} repetitions.",
        )
    in_all = len(request.scenarios) * request.repeat
    if in_all > MAX_OF_ALL_SCENARIOS:
        raise UsageError(
            f"--repeat {request.repeat} of {len(request.scenarios)} scenarios is {in_all} "
            f"repetitions, and a recording holds {MAX_OF_ALL_SCENARIOS}.",
            "Ask for fewer, or for fewer scenarios at a time.",
        )
    if request.pace_cycles is not None and not 0 <= request.pace_cycles <= NS_PER_S:
        raise UsageError(
            f"--pace {request.pace_cycles} is out of range.",
            f"Ask for 0 to {NS_PER_S:,} cycles.",
        )

    for option, limit in (("--max-rate", request.max_rate_hz), ("--max-time", request.max_time_s)):
        if limit is not None and not 0 <= limit < math.inf:
            raise UsageError(
                f"{option} {limit:g} is out of range.", "Give a number above 0, or 'unlimited'."
            )


def limits_of(request: RunRequest, *, ours: bool) -> RunLimits | None:
    """What the run will be kept to; see limits.chosen_limits()."""
    return chosen_limits(request.max_rate_hz, request.max_time_s, ours=ours)


def check_count(request: RunRequest, guest: Driver) -> None:
    """See that the guest can log so many IPIs.

    Raises:
        UsageError: it cannot.
    """
    most = guest.max_count - WARMUP
    if not 1 <= request.count <= most:
        raise UsageError(
            f"--count {request.count} is out of range.",
            f"Ask for 1 to {most:,} IPIs (what the logs of {guest.n_vcpus} vCPUs hold).",
        )


def run(
    request: RunRequest,
    guest: Guest,
    sink: Sink,
    progress: Progress,
    opened: Callable[[], None] = lambda: None,
) -> tuple[RunResult, IpitraceError | None]:
    """Measure, and answer what was found, with the error that cut it short if one did.

    `opened` is called when the BPF programs are loaded, before the first storm.

    Raises:
        UsageError, HostError: nothing could be measured at all.
        InterruptedRunError: nothing was finished until then.
    """
    check_request(request)
    driver = guest.driver
    check_count(request, driver)
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    started_s = time.monotonic()
    if all(driver.unsupported(scenario) for scenario in request.scenarios):
        raise _nothing_can_run(request, driver)
    limits = limits_of(request, ours=guest.ours)
    tsc_hz = driver.tsc_khz * 1000.0 if driver.tsc_khz else tsc_hz_of_host() or FASTEST_TSC_HZ
    _check_time(request, guest, limits, tsc_hz)
    neighbours = read_neighbours(own_pids=guest.own_pids)
    clock = _open_clock()
    readings = [clock.sandwich()] if clock else []  # the farther apart, the better the rate
    with contextlib.ExitStack() as stack:
        tracer = None
        if request.trace and guest.pid is not None:
            tracer = stack.enter_context(_load_tracer(guest.pid, driver.n_vcpus))
        opened()
        budget = Budget(limits)
        gathered = _Run(
            request,
            driver,
            tracer,
            clock,
            sink,
            progress,
            limits,
            tsc_hz,
            budget,
            sandwiches=readings,
        )
        stack.enter_context(announced(driver.pinned_cpus or ()))
        gathered.lookout = lookout = Lookout(guest, neighbours)
        _run_scenarios(gathered)
        losses = _losses(gathered)
        observer = None if tracer is None else _observer(gathered, tracer)
    early = sum(r.cycles.early for m in gathered.measured for r in m.repetitions)
    clock_found = clock_result(
        gathered.sandwiches if guest.shares_tsc else (),
        tsc_khz=gathered.tsc_khz,
        tsc_offset=gathered.tsc_offset,
        bound_cycles=gathered.bound_cycles,
        violations={"handler_before_send": early, **gathered.violations},
        scale=gathered.tsc_scale,
        stated_by=guest.tsc_stated_by,
    )
    all_sends = sum(r.sent + m.warmup for m in gathered.measured for r in m.repetitions)
    recorded_sends = sum(row.sent for row in gathered.rows)
    result = RunResult(
        ipitrace_version=VERSION,
        started_at=started_at,
        duration_seconds=round(time.monotonic() - started_s, 3),
        command=request.command,
        complete=gathered.failure is None,
        failure=None if gathered.failure is None else gathered.failure.message,
        untrustworthy=(
            *describe_disturbances(lookout.disturbances, worthless=True),
            *doubts(losses, clock_found, all_sends=all_sends, recorded_sends=recorded_sends),
        ),
        host=_host(guest.pinning, neighbours),
        guest=driver.describe(),
        clock=clock_found,
        losses=losses,
        observer=observer,
        observer_absent=None if observer else _why_untraced(guest),
        scenarios=tuple(gathered.rows),
        seed=request.seed,
        disturbances=tuple(lookout.disturbances),
        limits=limits,
    )
    return result, gathered.failure


def _nothing_can_run(request: RunRequest, driver: Driver) -> HostError:
    first = request.scenarios[0]
    able = [s.name for s in SCENARIOS if driver.unsupported(s) is None]
    can = f"These can: {', '.join(able)}." if able else "None can."
    return HostError(
        f"The scenario '{first.name}' cannot run here: {driver.unsupported(first)}.",
        f"{can} 'ipitrace scenarios' with the same --vm and --via says why others cannot.",
    )


def _check_time(request: RunRequest, guest: Guest, limits: RunLimits | None, tsc_hz: float) -> None:
    """See that the storms can be over in time.

    Raises:
        UsageError: they cannot.
    """
    able = [s for s in request.scenarios if guest.driver.unsupported(s) is None]
    n_modes = len(Mode) if request.trace and guest.pid is not None else 1
    check_time(
        (
            (n_modes * (sends + WARMUP), limited_pace(pace_of(request, scenario), limits, tsc_hz))
            for scenario in able
            for sends in sends_of(request)
        ),
        limits,
        tsc_hz,
    )


def tsc_hz_of_host() -> float | None:
    """This host's TSC against CLOCK_MONOTONIC, over some 20 ms; None where it cannot be read."""
    clock = _open_clock()
    if clock is None:
        return None
    first = clock.sandwich()
    time.sleep(_RATE_S)
    measured = measure_frequency([first, clock.sandwich()])
    return None if measured is None else measured.hz


def _load_tracer(pid: int, n_vcpus: int) -> Tracer:
    require_trace_privilege(otherwise=NO_TRACE)
    require_initial_pid_namespace(otherwise=NO_TRACE)
    return Tracer.load(pid=pid, n_vcpus=n_vcpus)


def _why_untraced(guest: Guest) -> str:
    if guest.untraced is not None:
        return f"nothing was traced: {guest.untraced}"
    return "nothing was traced (--no-trace)"


def _open_clock() -> Clock | None:
    try:
        return Clock(stamp_resolution_ns(read_fingerprint().clocksource))
    except OSError:
        return None


def _run_scenarios(run: _Run) -> None:
    """Run every scenario that the guest can; whole repetitions stay when something fails.

    Raises:
        InterruptedRunError: before any scenario had a whole repetition in each mode.
        IpitraceError: likewise, and the failure says nothing of a guest.
    """
    able = [s for s in run.request.scenarios if run.guest.unsupported(s) is None]
    modes = tuple(Mode) if run.tracer is not None else (Mode.OFF,)
    turns = plan_turns(able, sends=sends_of(run.request), modes=modes, seed=run.request.seed)
    total = sum(turn.sends for turn in turns)
    done = 0
    try:
        with _detached_at_end(run.tracer):
            for turn in turns:
                _take(run, turn, done, total)
                done += turn.sends
        finish_undisturbed()
    except KeyboardInterrupt:
        finish_undisturbed()
        if not run.finished(modes):  # an empty recording is worth nothing, and may replace one
            raise InterruptedRunError("Interrupted.", NOTHING_WRITTEN) from None
        run.failure = InterruptedRunError("Interrupted.", _KEPT)
    except IpitraceError as raised:
        error = _offline(run.guest.pinned_cpus) or raised
        finished = run.finished(modes)
        if not finished and not isinstance(error, MeasurementError):
            raise
        error.hint = f"{_KEPT if finished else _NOTHING} {error.hint}".strip()
        run.failure = error
    run.measured = run.finished(modes)
    rows = {m.scenario.name: summarise_scenario(m) for m in run.measured}
    for scenario in run.request.scenarios:
        reason = run.guest.unsupported(scenario)
        if reason is not None:
            run.rows.append(_unsupported(scenario, reason))
        elif scenario.name in rows:
            run.rows.append(rows[scenario.name])


def _offline(pinned: tuple[int, ...] | None, files: HostFiles = HOST) -> MeasurementError | None:
    """Why a storm fails, or is worth nothing: a vCPU's CPU went offline.

    Its thread then shares another vCPU's CPU, and each IPI takes the scheduler's time slices.
    """
    online = read_conditions((), (), files).online
    gone = set(pinned or ()) - set(online) if online is not None else set()
    if not gone:
        return None
    return MeasurementError(
        f"{cpus_of(gone)} went offline during the run.",
        "Keep the CPUs online while it measures.",
    )


def _check_online(run: _Run) -> None:
    """While a storm runs, look now and then whether it is worth going on.

    Raises:
        MeasurementError: a vCPU's CPU went offline.
    """
    now_s = time.monotonic()
    if now_s < run.next_look_s:
        return
    run.next_look_s = now_s + _LOOK_EVERY_S
    if error := _offline(run.guest.pinned_cpus):
        raise error


def _unsupported(scenario: Scenario, reason: str) -> ScenarioResult:
    return ScenarioResult(
        name=scenario.name,
        pattern=scenario.pattern,
        target_state=scenario.target_state,
        send_method=scenario.send_method,
        status=ScenarioStatus.UNSUPPORTED,
        reason=reason,
    )


def _take(run: _Run, turn: Turn[Scenario], done: int, total: int) -> None:
    """Run one repetition in a fresh guest; `done` of `total` sends were made before."""
    scenario = turn.scenario
    request = StormRequest(
        scenario,
        run.guest.n_vcpus,
        turn.sends,
        WARMUP,
        limited_pace(pace_of(run.request, scenario), run.limits, run.tsc_hz),
        inject=run.request.inject,
        handler_burn_cycles=run.request.handler_burn_cycles,
    )

    def told(sent: int) -> None:
        run.budget.check()
        _check_online(run)
        run.progress(scenario.name, (done + max(sent - WARMUP, 0)) / total)

    _set_mode(run.tracer, turn.mode)
    run.budget.begin()
    recorded = run_repetition(
        request,
        run.guest,
        tracer=run.tracer,
        mode=turn.mode,
        clock=run.clock,
        told=told,
        earlier=run.sandwiches[-_EARLIER:],
    )
    run.budget.end(_storm_s(run, recorded))
    kept = run.taken.setdefault(scenario.name, _Taken(scenario, request.pace_cycles))
    targets = run.guest.targets(scenario)
    kept.repetitions.append(
        reduce_storm(
            recorded.storm,
            targets,
            turn.mode,
            recorded.watched,
            seen=recorded.seen,
            order=run.repetitions,
        )
    )
    kept.switches += recorded.switches
    if run.lookout is not None:
        run.lookout.after(request, recorded, run.repetitions, _tsc_hz(run, recorded))
    _keep(run, scenario, recorded)
    if recorded.trace is not None:
        kept.bound_cycles = max(kept.bound_cycles, recorded.trace.bound_cycles)
    elif recorded.no_trace_reason:
        kept.notes.add(f"no stages: {recorded.no_trace_reason}")


def _tsc_hz(run: _Run, recorded: Recorded) -> float | None:
    """The guest TSC's rate as far as it is known by now."""
    if recorded.storm.tsc_khz is not None:
        return recorded.storm.tsc_khz * 1000.0
    measured = measure_frequency([*run.sandwiches, *recorded.sandwiches])
    return None if measured is None else measured.hz * run.tsc_scale


def _storm_s(run: _Run, recorded: Recorded) -> float | None:
    """How long the storm took by the guest's stamps, the warm-up in proportion."""
    tsc_hz, measured = _tsc_hz(run, recorded), len(recorded.storm.sends)
    if tsc_hz is None or not measured:
        return None
    return silence(recorded.storm, tsc_hz)[0] * (measured + WARMUP) / measured


def sends_of(request: RunRequest) -> tuple[int, ...]:
    """Measured sends of each repetition; so many of each scenario and mode."""
    return split(request.count, max(request.repeat, -(-request.count // _MOST_SENDS)))


def _set_mode(tracer: Tracer | None, mode: Mode) -> None:
    if tracer is None:
        return
    if mode == Mode.OFF:
        tracer.detach()
    else:
        tracer.attach(counting_only=mode == Mode.COUNTING)


@contextlib.contextmanager
def _detached_at_end(tracer: Tracer | None) -> Iterator[None]:
    """Whatever happens inside, no probe stays attached."""
    try:
        yield
    finally:
        if tracer is not None:
            tracer.detach()


def _keep(run: _Run, scenario: Scenario, recorded: Recorded) -> None:
    """Write what a repetition gave to the recording, and note what the run as a whole needs."""
    place = RepetitionKey(scenario.name, run.repetitions)
    targets = run.guest.targets(scenario)
    storm = recorded.storm
    run.sink.append(
        "guest_ipis",
        guest_ipi_columns(place, storm, recorded.mode, SENDER, targets),
        GUEST_IPI_MEANINGS,
    )
    if recorded.trace is not None and recorded.watched is not None:
        trace, spans = recorded.trace, recorded.watched.spans
        run.sink.append("host_events", host_event_columns(place, trace), HOST_EVENT_MEANINGS)
        run.sink.append("spans", span_columns(place, spans, SENDER, run.ipis), SPAN_MEANINGS)
        run.ipis += len(spans.seq)
        run.bound_cycles = max(run.bound_cycles, trace.bound_cycles)
    run.repetitions += 1
    run.sandwiches += recorded.sandwiches
    run.incomplete += storm.incomplete
    run.tsc_khz, run.tsc_offset = storm.tsc_khz, storm.tsc_offset
    if storm.tsc_ratio is not None:
        run.tsc_scale = GuestTsc(0, *storm.tsc_ratio).scale
    for kind, n in recorded.violations.items():
        run.violations[kind] = run.violations.get(kind, 0) + n


def pace_of(request: RunRequest, scenario: Scenario) -> int:
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


def _losses(run: _Run) -> Losses:
    unpaired = sum(r.cycles.unpaired for m in run.measured for r in m.repetitions)
    if run.tracer is None:
        return Losses(0, {}, {}, run.incomplete, unpaired)
    lost = run.tracer.losses()
    return Losses(
        int(run.tracer.seen().sum()),
        {name: n for name, n in lost.ring_overruns.items() if n},
        {name: n for name, n in lost.recursion_misses.items() if n or n is None},
        run.incomplete,
        unpaired,
    )


def _observer(run: _Run, tracer: Tracer) -> Observer:
    repetitions = min((len(m.of(Mode.OFF)) for m in run.measured), default=0)
    return Observer(
        method=_METHOD,
        repetitions=repetitions,
        confidence=interval_confidence(repetitions),
        costs={m.scenario.name: observer_costs(m) for m in run.measured},
        setup_seconds=round(tracer.load_s, 3),
        attach_seconds=round(tracer.attach_s, 3),
        hooks=dict(tracer.hooks),
        left_out=dict(tracer.left_out),
    )


def _host(pinning: Pinning, neighbours: Neighbours) -> dict[str, object]:
    fingerprint = read_fingerprint()
    return {
        "one_line": one_line(fingerprint),
        "fingerprint": fingerprint.to_dict(),
        "neighbours": neighbours.to_dict(),
        "pinning": {"overcommitted": pinning.overcommitted, "why": pinning.why},
    }
