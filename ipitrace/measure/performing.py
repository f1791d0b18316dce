# SPDX-License-Identifier: Apache-2.0
"""Runs the storms of a plan one after the other and keeps the results of each."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from ipitrace.base.errors import (
    NOTHING_WRITTEN,
    InterruptedRunError,
    IpitraceError,
    MeasurementError,
)
from ipitrace.base.signals import finish_undisturbed
from ipitrace.clock import Clock
from ipitrace.measure.clocks import ClockReadings
from ipitrace.measure.columns import RepetitionKey
from ipitrace.measure.guests import Guest
from ipitrace.measure.kept import KeptRepetitions
from ipitrace.measure.limits import Budget
from ipitrace.measure.lookout import Lookout
from ipitrace.measure.online import OnlineCheck, gone_offline
from ipitrace.measure.plan import Plan
from ipitrace.measure.repetition import run_repetition
from ipitrace.measure.request import RunRequest, warmup_of
from ipitrace.measure.rows import RowWriter
from ipitrace.measure.steadiness import silence
from ipitrace.measure.tracers import Tracers
from ipitrace.measure.turns import Turn
from ipitrace.storm.driver import Storm, StormRequest
from ipitrace.summary import Measured
from ipitrace.words.scenarios import SENDER, Mode, Scenario, routes_of

_KEPT = "Completed repetitions are kept."
_NOTHING = "No repetition was completed."

Progress: TypeAlias = Callable[[str, float], None]
"""Receives the name of the running scenario, and the completed share (0..1) of the whole run."""


@dataclass(frozen=True)
class Context:
    """What does not change during a run.

    Attributes:
        tracers: None if nothing is traced.
        clock: None if this host's clocks cannot be read.
    """

    request: RunRequest
    guest: Guest
    plan: Plan
    tracers: Tracers | None
    clock: Clock | None
    progress: Progress


@dataclass(frozen=True)
class Gathered:
    """The data that a run collects, one object for each purpose."""

    clocks: ClockReadings
    kept: KeptRepetitions
    rows: RowWriter
    lookout: Lookout
    budget: Budget


def perform(
    context: Context, gathered: Gathered, storms: Callable[[Context, Gathered], None]
) -> IpitraceError | None:
    """Run `storms`. Returns the error that ended the run early, or None.

    Completed repetitions are kept when a later one fails.

    Raises:
        InterruptedRunError: the run was interrupted before any scenario had a repetition in
            each mode.
        IpitraceError: the run failed before that, and the error is not a MeasurementError.
    """
    try:
        with _detached_at_end(context.tracers):
            storms(context, gathered)
        finish_undisturbed()
    except KeyboardInterrupt:
        finish_undisturbed()
        if not finished(context, gathered):  # an empty recording could replace a complete one
            raise InterruptedRunError("Interrupted.", NOTHING_WRITTEN) from None
        return InterruptedRunError("Interrupted.", _KEPT)
    except IpitraceError as raised:
        error = gone_offline(context.plan.cpus(context.guest.driver)) or raised
        measured = finished(context, gathered)
        if not measured and not isinstance(error, MeasurementError):
            raise
        error.hint = f"{_KEPT if measured else _NOTHING} {error.hint}".strip()
        return error
    return None


def finished(context: Context, gathered: Gathered) -> list[Measured]:
    """The scenarios with at least one repetition in all modes. Call this before tracing ends."""
    fires = context.tracers is not None and context.tracers.exits_fire()
    left_out = {} if context.tracers is None else context.tracers.evidence.left_out
    return gathered.kept.finished(len(context.plan.modes), kvm_exit_fires=fires, left_out=left_out)


def perform_turns(context: Context, gathered: Gathered) -> None:
    """Run the repetitions that are measured; to be called by perform()."""
    budget = gathered.budget
    online = OnlineCheck(context.plan.cpus(context.guest.driver))
    turns = context.plan.turns(context.request.seed)
    total = context.plan.n_sends
    done = 0

    def told(scenario: Scenario, before: int, sent: int) -> None:
        budget.check()
        online.check()
        measured = max(sent - warmup_of(scenario), 0)
        context.progress(scenario.name, (before + measured) / total)

    for number, turn in enumerate(turns):
        request = storm_request(context, turn)
        if context.tracers is not None:
            context.tracers.set_mode(turn.mode, counted_too=turn.block == 0)
        budget.begin()
        recorded = run_repetition(
            request,
            context.guest.driver,
            tracers=context.tracers,
            mode=turn.mode,
            clock=context.clock,
            told=partial(told, turn.scenario, done),
            earlier=gathered.clocks.latest(),
        )
        tsc_hz = gathered.clocks.tsc_hz(recorded)
        budget.end(storm_s(recorded.storm, request.warmup, tsc_hz))
        targets = context.guest.driver.targets(turn.scenario)
        cpus = context.guest.driver.cpus_in(turn.scenario)
        gathered.kept.add(request, targets, recorded, number, cpus)
        gathered.lookout.after(request, recorded, number, tsc_hz)
        routes = routes_of(turn.scenario.pattern, targets)
        gathered.rows.write(RepetitionKey(turn.scenario.name, number), routes, recorded)
        gathered.clocks.add(recorded)
        done += turn.sends


def storm_request(context: Context, turn: Turn[Scenario]) -> StormRequest:
    """The storm of a repetition."""
    return StormRequest(
        turn.scenario,
        context.guest.driver.n_vcpus,
        turn.sends,
        warmup_of(turn.scenario),
        context.plan.paces[turn.scenario.name],
        inject=context.request.inject,
        handler_burn_cycles=context.request.handler_burn_cycles,
        tsc_hz=context.plan.tsc_hz,
    )


def storm_s(storm: Storm, warmup: int, tsc_hz: float | None) -> float | None:
    """The storm's duration by the guest's stamps; the warm-up's time is estimated from it."""
    measured = len(storm.sends_of(SENDER))
    if tsc_hz is None or not measured:
        return None
    return silence(storm, tsc_hz)[0] * (measured + warmup) / measured


@contextlib.contextmanager
def _detached_at_end(tracers: Tracers | None) -> Iterator[None]:
    """Detach all probes at the end, also after an exception."""
    try:
        yield
    finally:
        if tracers is not None:
            tracers.set_mode(Mode.OFF)
