# SPDX-License-Identifier: Apache-2.0
"""From the repetitions of one scenario to its row."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from ipitrace.correlate.breakdown import path_shares
from ipitrace.correlate.spans import Spans
from ipitrace.recording.row import RepetitionFigures, ScenarioResult
from ipitrace.summary.absences import absent_figures, target_notes
from ipitrace.summary.exits import exit_times, exits_per_ipi
from ipitrace.summary.interrupts import host_interrupts
from ipitrace.summary.sides import Sides, events_per_ipi, kvm_stats
from ipitrace.summary.stages import stages_of
from ipitrace.summary.stats import percentiles, summarise
from ipitrace.summary.storms import Measured, Repetition
from ipitrace.words.interrupts import POSTED_ROWS
from ipitrace.words.paths import IpiPath
from ipitrace.words.scenarios import PROVING, SENDER, Mode, ScenarioStatus


def summarise_scenario(measured: Measured, cycles_per_ns: float | None = None) -> ScenarioResult:
    """Reduce a scenario's repetitions to one row.

    `cycles_per_ns` is the guest TSC's rate; None if it was not measured.
    """
    scenario, targets, storms = measured.scenario, measured.targets, measured.headline
    timed_out = sum(r.timed_out for r in storms)
    sides, proven = _sides(measured, storms), _sides(measured, measured.proving)
    stats = kvm_stats(storms, sides)
    exits, absent = exits_per_ipi(measured, proven, stats)
    watched = [r.watched for r in measured.proving if r.watched is not None]
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
        sent=sides.sent,
        delivered=sum(r.handled[t] for r in storms for t in targets),
        coalesced=sum(_coalesced(r, targets) for r in storms),
        incomplete=timed_out,
        send_cycles=summarise(np.concatenate([r.cycles.send for r in storms])),
        deliver_cycles=summarise(np.concatenate([r.cycles.deliver for r in storms])),
        round_trip_cycles=summarise(np.concatenate([r.cycles.round_trip for r in storms])),
        exits=exits,
        kvm_stats=stats,
        events_per_ipi=events_per_ipi(measured.proving, proven),
        paths=_shares(spans) if spans else None,
        stages=stages_of(measured, cycles_per_ns),
        exit_times=exit_times(measured, watched) or None,
        late_posts=late_posts,
        host_interrupts=interrupts,
        unmatched_ipis=sum(s.unmatched_ipis for s in spans),
        unmatched_events=_added(s.unmatched_events for s in spans) if spans else None,
        suspect_spans=sum(int(np.count_nonzero(s.suspect)) for s in spans),
        repetition_figures=tuple(_figures(measured, r) for r in measured.repetitions),
        absent=absent | absent_figures(measured, watched, stats),
        notes=(*measured.notes, *target_notes(scenario, storms, stats)),
    )


def _sides(measured: Measured, storms: Sequence[Repetition]) -> Sides:
    sent = sum(r.sent for r in storms)
    others = tuple(t for t in measured.targets if t != SENDER)
    delivered = sum(r.handled[t] for r in storms for t in others)
    return Sides(others, sent, max(delivered, 1))


def _figures(measured: Measured, storm: Repetition) -> RepetitionFigures:
    """The figures of a single repetition."""
    sides = _sides(measured, (storm,))
    alone = replace(measured, repetitions=(storm,))
    exits, _absent_exits = exits_per_ipi(alone, sides, kvm_stats((storm,), sides))
    proves = storm.watched is not None and storm.mode in PROVING
    return RepetitionFigures(
        order=storm.order,
        mode=storm.mode,
        sent=storm.sent,
        send_cycles=percentiles(storm.cycles.send),
        deliver_cycles=percentiles(storm.cycles.deliver),
        round_trip_cycles=percentiles(storm.cycles.round_trip),
        exits=exits if exits.source and storm.mode != Mode.STAGES else None,
        paths=_shares([storm.watched.spans]) if proves and storm.watched else None,
    )


def _shares(spans: Sequence[Spans]) -> dict[str, float]:
    return {IpiPath(p).text: share for p, share in path_shares(spans).items()}


def _coalesced(storm: Repetition, targets: Iterable[int]) -> int:
    """Deliveries missing without a time-out; a timed-out send accounts for one of each target."""
    expected = storm.sent - storm.timed_out
    return sum(max(expected - storm.handled[target], 0) for target in targets)


def _added(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for part in parts:
        for name, n in part.items():
            total[name] = total.get(name, 0) + n
    return total
