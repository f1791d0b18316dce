# SPDX-License-Identifier: Apache-2.0
"""From the repetitions of one scenario to its row."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from ipitrace.correlate.breakdown import break_down, path_shares
from ipitrace.correlate.spans import Spans
from ipitrace.recording.row import (
    RepetitionFigures,
    ScenarioResult,
    StageBreakdown,
    StageSequence,
    StageStep,
)
from ipitrace.summary.absences import absent_figures, target_notes
from ipitrace.summary.exits import exit_times, exits_per_ipi
from ipitrace.summary.interrupts import host_interrupts
from ipitrace.summary.sides import Sides, events_per_ipi, kvm_stats
from ipitrace.summary.stats import percentiles, summarise
from ipitrace.summary.storms import Measured, Repetition
from ipitrace.words.interrupts import POSTED_ROWS
from ipitrace.words.paths import IpiPath
from ipitrace.words.scenarios import ScenarioStatus
from ipitrace.words.stages import STAGES


def summarise_scenario(measured: Measured) -> ScenarioResult:
    """Reduce a scenario's repetitions to one row."""
    scenario, targets, storms = measured.scenario, measured.targets, measured.headline
    sent = sum(r.sent for r in storms)
    delivered = sum(r.handled[t] for r in storms for t in targets)
    timed_out = sum(r.timed_out for r in storms)
    sides = Sides(scenario, targets, sent, max(delivered, 1))
    stats = kvm_stats(storms, sides)
    exits, absent = exits_per_ipi(measured, sides, stats)
    watched = [r.watched for r in storms if r.watched is not None]
    spans = [w.spans for w in watched]
    interrupts = host_interrupts(watched)
    late_posts = {
        row: sum(per_cpu.values())
        for row, per_cpu in (interrupts or {}).items()
        if row in POSTED_ROWS
    } or None
    return ScenarioResult(
        name=scenario.name,
        pattern=scenario.pattern,
        target_state=scenario.target_state,
        send_method=scenario.send_method,
        status=ScenarioStatus.MEASURED,
        targets=len(targets),
        pace_cycles=measured.pace_cycles,
        warmup=measured.warmup,
        repetitions=len(storms),
        sent=sent,
        delivered=delivered,
        coalesced=sum(_coalesced(r, targets) for r in storms),
        incomplete=timed_out,
        send_cycles=summarise(np.concatenate([r.cycles.send for r in storms])),
        deliver_cycles=summarise(np.concatenate([r.cycles.deliver for r in storms])),
        round_trip_cycles=summarise(np.concatenate([r.cycles.round_trip for r in storms])),
        exits=exits,
        kvm_stats=stats,
        events_per_ipi=events_per_ipi(storms, sides),
        paths=_shares(spans) if spans else None,
        stages=_stages(measured, spans),
        exit_times=exit_times(measured, watched) or None,
        late_posts=late_posts,
        host_interrupts=interrupts,
        unmatched_ipis=sum(s.unmatched_ipis for s in spans),
        unmatched_events=_added(s.unmatched_events for s in spans) if spans else None,
        suspect_spans=sum(int(np.count_nonzero(s.suspect)) for s in spans),
        repetition_figures=tuple(_figures(measured, r) for r in measured.repetitions),
        absent=absent
        | absent_figures(storms, watched, stats, kvm_exit_fires=measured.kvm_exit_fires),
        notes=(*measured.notes, *target_notes(scenario, storms, stats)),
    )


def _figures(measured: Measured, storm: Repetition) -> RepetitionFigures:
    """The figures of a single repetition."""
    delivered = sum(storm.handled[t] for t in measured.targets)
    sides = Sides(measured.scenario, measured.targets, storm.sent, max(delivered, 1))
    alone = replace(measured, repetitions=(storm,))
    exits, _absent_exits = exits_per_ipi(alone, sides, kvm_stats((storm,), sides))
    spans = None if storm.watched is None else storm.watched.spans
    return RepetitionFigures(
        order=storm.order,
        mode=storm.mode,
        sent=storm.sent,
        send_cycles=percentiles(storm.cycles.send),
        deliver_cycles=percentiles(storm.cycles.deliver),
        round_trip_cycles=percentiles(storm.cycles.round_trip),
        exits=exits if exits.source else None,
        paths=None if spans is None else _shares([spans]),
    )


def _shares(spans: Sequence[Spans]) -> dict[str, float]:
    return {IpiPath(p).text: share for p, share in path_shares(spans).items()}


def _coalesced(storm: Repetition, targets: Iterable[int]) -> int:
    """Deliveries missing without a time-out; a timed-out send accounts for one of each target."""
    expected = storm.sent - storm.timed_out
    return sum(max(expected - storm.handled[target], 0) for target in targets)


def _stages(measured: Measured, spans: Sequence[Spans]) -> StageBreakdown | None:
    found = break_down(spans, measured.bound_cycles)
    if found is None:
        return None
    return StageBreakdown(
        spans=found.spans,
        bound_cycles=measured.bound_cycles,
        sequences=tuple(
            StageSequence(tuple(s.name.lower() for s in q.stages), q.spans) for q in found.sequences
        ),
        steps=tuple(
            StageStep(
                stage=step.stage.name.lower(),
                side=STAGES[step.stage].side,
                spans=step.spans,
                since_send_cycles=step.since_send_cycles,
                step_cycles=step.step_cycles,
                share_of_deliver=step.share_of_deliver,
                resolved=step.resolved,
            )
            for step in found.steps
        ),
    )


def _added(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for part in parts:
        for name, n in part.items():
            total[name] = total.get(name, 0) + n
    return total
