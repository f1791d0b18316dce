# SPDX-License-Identifier: Apache-2.0
"""Makes the parts of a run's result from what the run collected."""

from collections.abc import Iterable, Sequence
from typing import Final

from ipitrace.host.cpus import Pinning
from ipitrace.host.fingerprint import one_line, read_fingerprint
from ipitrace.host.neighbours import Neighbours
from ipitrace.measure.tracers import Tracers
from ipitrace.recording.host import HostResult, PinningResult
from ipitrace.recording.result import Losses, Observer
from ipitrace.recording.row import ScenarioResult
from ipitrace.storm.driver import Driver
from ipitrace.summary import Measured, observer_costs, summarise_scenario
from ipitrace.summary.stats import interval_confidence
from ipitrace.words.scenarios import Mode, Scenario, ScenarioStatus

_METHOD: Final = (
    "the repetitions alternate between the modes (off, stages, evidence; evidence, stages, off; "
    "and so on) and between the scenarios; the order of the scenarios is shuffled by the run's "
    "seed, and mirrored in every second block"
)


def rows_of(
    scenarios: Iterable[Scenario],
    driver: Driver,
    measured: Iterable[Measured],
    cycles_per_ns: float | None = None,
) -> tuple[ScenarioResult, ...]:
    """A row for each scenario that was measured or that the guest cannot run, as requested.

    `cycles_per_ns` is the guest TSC's rate; None if it was not measured.
    """
    rows = {m.scenario.name: summarise_scenario(m, cycles_per_ns) for m in measured}
    found = []
    for scenario in scenarios:
        reason = driver.unsupported(scenario)
        if reason is not None:
            found.append(_unsupported(scenario, reason))
        elif scenario.name in rows:
            found.append(rows[scenario.name])
    return tuple(found)


def _unsupported(scenario: Scenario, reason: str) -> ScenarioResult:
    return ScenarioResult(
        name=scenario.name,
        pattern=scenario.pattern,
        target_state=scenario.target_state,
        send_method=scenario.send_method,
        status=ScenarioStatus.UNSUPPORTED,
        reason=reason,
    )


def losses_of(tracers: Tracers | None, measured: Sequence[Measured], incomplete: int) -> Losses:
    """The losses; `incomplete` is the number of IPIs that were not acknowledged in time."""
    unpaired = sum(r.cycles.unpaired for m in measured for r in m.repetitions)
    if tracers is None:
        return Losses(0, {}, {}, incomplete, unpaired)
    lost = tracers.losses()
    return Losses(
        tracers.n_seen(),
        {name: n for name, n in lost.ring_overruns.items() if n},
        {name: n for name, n in lost.recursion_misses.items() if n or n is None},
        incomplete,
        unpaired,
    )


def observer_of(tracers: Tracers, measured: Sequence[Measured]) -> Observer:
    """The observer cost."""
    repetitions = min((len(m.of(Mode.OFF)) for m in measured), default=0)
    return Observer(
        method=_METHOD,
        repetitions=repetitions,
        confidence=interval_confidence(repetitions),
        costs={m.scenario.name: observer_costs(m) for m in measured},
        setup_seconds=round(tracers.load_s, 3),
        attach_seconds=round(tracers.attach_s, 3),
        hooks=dict(tracers.evidence.hooks),
        left_out=dict(tracers.evidence.left_out),
        stage_hooks=dict(tracers.stages.hooks),
    )


def host_of(pinning: Pinning, neighbours: Neighbours) -> HostResult:
    """The host, as run.json has it."""
    fingerprint = read_fingerprint()
    return HostResult(
        one_line=one_line(fingerprint),
        fingerprint=fingerprint,
        neighbours=neighbours.result(),
        pinning=PinningResult(pinning.overcommitted, pinning.why),
    )
