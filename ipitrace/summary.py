# SPDX-License-Identifier: Apache-2.0
"""From the repetitions of one scenario to its row: pure, no guest and no host needed."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from ipitrace.correlate.breakdown import break_down, path_shares
from ipitrace.correlate.exits import ExitTable
from ipitrace.correlate.pairing import ABSENT, pair_receipts, taken
from ipitrace.correlate.paths import Path
from ipitrace.correlate.spans import Spans
from ipitrace.correlate.stages import STAGES
from ipitrace.host.exit_reasons import reason_name
from ipitrace.host.interrupts import InterruptDelta
from ipitrace.layout import Kind
from ipitrace.model import Pattern, Scenario, TargetState
from ipitrace.result import (
    Exits,
    ExitTime,
    ObserverCost,
    PerSide,
    RepetitionFigures,
    ScenarioResult,
    StageBreakdown,
    StageSequence,
    StageStep,
)
from ipitrace.stats import median, paired_difference, percentiles, summarise
from ipitrace.storm.driver import Storm

KVM_EXIT_SOURCE = "kvm_exit tracepoint"
KVM_EXIT_UNSORTED = "kvm_exit tracepoint, by reason not known: see the note on the clock"
KVM_STATS_SOURCE = "KVM_GET_STATS_FD"
SENDER = 0
_EXIT_COUNTERS = ("exits", "_exits")  # KVM's names: the total, and by reason
POSTED_ROWS = ("PIN", "NPI", "PIW")
_UNTRACED = "nothing was traced (--no-trace)"
_MOSTLY = 0.5


class Mode(StrEnum):
    """How much watched a repetition."""

    OFF = "off"
    COUNTING = "counting"
    FULL = "full"


@dataclass(frozen=True)
class Cycles:
    """What one storm measured; arrays of cycles in the order sent.

    Attributes:
        send: S of every measured send.
        deliver: D of every handler entry, on all targets.
        round_trip: R of every send acknowledged in time.
        early: handler entries that seem to come before their send; with one TSC for all
            vCPUs there must be none.
        unpaired: handler entries that belong to no send.
    """

    send: NDArray[np.int64]
    deliver: NDArray[np.int64]
    round_trip: NDArray[np.int64]
    early: int
    unpaired: int


def cycles_of(storm: Storm, targets: Iterable[int]) -> Cycles:
    """S, D and R of a storm, from the guest's own stamps alone."""
    send_tsc = storm.sends["send_tsc"].astype(np.int64)
    ack_tsc = storm.sends["ack_tsc"].astype(np.int64)
    parts, unpaired = [], 0
    for target in targets:
        handled = storm.receipts[target]["handler_tsc"].astype(np.int64)
        pairing = pair_receipts(send_tsc, handled)
        handler = taken(handled, pairing.receipt_of_send)
        parts.append((handler - send_tsc)[handler != ABSENT])
        unpaired += pairing.unpaired
    deliver = np.concatenate(parts)
    return Cycles(
        send=storm.sends["sent_tsc"].astype(np.int64) - send_tsc,
        deliver=deliver,
        round_trip=(ack_tsc - send_tsc)[ack_tsc != 0],
        early=int(np.count_nonzero(deliver <= 0)),
        unpaired=unpaired,
    )


@dataclass(frozen=True)
class Watched:
    """What the host showed of one recorded repetition between its first and last measured send.

    Attributes:
        spans: one row for each send and target.
        exits: the exits of each vCPU concerned.
        interrupts: what rows of /proc/interrupts moved by, warm-up included; None where
            it cannot be read.
    """

    spans: Spans
    exits: Sequence[ExitTable]
    interrupts: InterruptDelta | None


@dataclass(frozen=True)
class Repetition:
    """One storm, reduced to what the row needs.

    Attributes:
        order: which fresh guest of the run it was.
        seen: host events per kind and vCPU, shape (kinds, n_vcpus); None with probes off.
        watched: only of recorded repetitions.
        stats: per vCPU, what KVM's counters moved by; None where KVM has none.
    """

    mode: Mode
    cycles: Cycles
    n_vcpus: int
    sent: int
    handled: tuple[int, ...]
    timed_out: int
    stats: tuple[Mapping[str, int], ...] | None
    seen: NDArray[np.int64] | None = None
    watched: Watched | None = None
    order: int = 0


def reduce_storm(
    storm: Storm,
    targets: Sequence[int],
    mode: Mode,
    watched: Watched | None = None,
    *,
    order: int = 0,
) -> Repetition:
    """Keep of a storm what its scenario's row is made of."""
    seen = None
    if mode != Mode.OFF and storm.start.events_seen is not None:
        seen = np.asarray(storm.end.events_seen, np.int64) - storm.start.events_seen.astype(
            np.int64
        )
    stats = None
    if storm.start.stats is not None and storm.end.stats is not None:
        stats = tuple(
            {name: value - start[name] for name, value in end.items()}
            for start, end in zip(storm.start.stats, storm.end.stats, strict=True)
        )
    return Repetition(
        mode=mode,
        cycles=cycles_of(storm, targets),
        n_vcpus=len(storm.handled),
        sent=len(storm.sends),
        handled=storm.handled,
        timed_out=int(np.count_nonzero(storm.sends["ack_tsc"] == 0)),
        stats=stats,
        seen=seen,
        watched=watched,
        order=order,
    )


@dataclass(frozen=True)
class Measured:
    """One scenario's repetitions, in the order run."""

    scenario: Scenario
    targets: tuple[int, ...]
    pace_cycles: int
    warmup: int
    bound_cycles: int
    repetitions: tuple[Repetition, ...]
    notes: tuple[str, ...] = field(default=())

    def of(self, mode: Mode) -> tuple[Repetition, ...]:
        """The repetitions of one mode."""
        return tuple(r for r in self.repetitions if r.mode == mode)

    @property
    def headline(self) -> tuple[Repetition, ...]:
        """The repetitions the row is made of: the recorded ones, or all if none was."""
        return self.of(Mode.FULL) or self.repetitions


def summarise_scenario(measured: Measured) -> ScenarioResult:
    """Make one row of a scenario's repetitions."""
    scenario, targets, storms = measured.scenario, measured.targets, measured.headline
    sent = sum(r.sent for r in storms)
    delivered = sum(r.handled[t] for r in storms for t in targets)
    timed_out = sum(r.timed_out for r in storms)
    sides = _Sides(scenario, targets, sent, max(delivered, 1))
    stats = _kvm_stats(storms, sides)
    exits, absent = _exits(measured, sides, stats)
    watched = [r.watched for r in storms if r.watched is not None]
    spans = [w.spans for w in watched]
    interrupts = _interrupts(watched)
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
        status="measured",
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
        events_per_ipi=_events_per_ipi(storms, sides),
        paths=_shares(spans) if spans else None,
        stages=_stages(measured, spans),
        exit_times=_exit_times(measured, watched) or None,
        late_posts=late_posts,
        host_interrupts=interrupts,
        unmatched_ipis=sum(s.unmatched_ipis for s in spans),
        unmatched_events=_added(s.unmatched_events for s in spans) if spans else None,
        suspect_spans=sum(int(np.count_nonzero(s.suspect)) for s in spans),
        repetition_figures=tuple(_figures(measured, r) for r in measured.repetitions),
        absent=absent | _absent(storms, watched, stats),
        notes=(*measured.notes, *_notes(scenario, stats)),
    )


def _figures(measured: Measured, storm: Repetition) -> RepetitionFigures:
    """What one repetition found by itself."""
    delivered = sum(storm.handled[t] for t in measured.targets)
    sides = _Sides(measured.scenario, measured.targets, storm.sent, max(delivered, 1))
    alone = replace(measured, repetitions=(storm,))
    exits, _absent_exits = _exits(alone, sides, _kvm_stats((storm,), sides))
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
    return {Path(p).text: share for p, share in path_shares(spans).items()}


def _coalesced(storm: Repetition, targets: Iterable[int]) -> int:
    """Deliveries missing without a time-out; a timed-out send excuses one of each target."""
    expected = storm.sent - storm.timed_out
    return sum(max(expected - storm.handled[target], 0) for target in targets)


@dataclass(frozen=True)
class _Sides:
    """Turns counts per vCPU into counts per IPI, sender and target apart."""

    scenario: Scenario
    targets: tuple[int, ...]
    sent: int
    delivered: int

    def per_ipi(self, per_vcpu: Sequence[int] | NDArray[np.int64]) -> PerSide:
        if self.scenario.pattern == Pattern.SELF:
            return PerSide(int(per_vcpu[SENDER]) / self.sent, 0.0)
        on_targets = sum(int(per_vcpu[t]) for t in self.targets)
        return PerSide(int(per_vcpu[SENDER]) / self.sent, on_targets / self.delivered)


def _kvm_stats(storms: Sequence[Repetition], sides: _Sides) -> dict[str, PerSide] | None:
    """KVM's counters per IPI that moved at all, `exits` among them."""
    totals: dict[str, list[int]] = {}
    for storm in storms:
        if storm.stats is None:
            return None
        for vcpu, moved in enumerate(storm.stats):
            for name, value in moved.items():
                totals.setdefault(name, [0] * storm.n_vcpus)[vcpu] += value
    per_ipi = {name: sides.per_ipi(counts) for name, counts in totals.items() if any(counts)}
    return dict(sorted(per_ipi.items()))


def _exits(
    measured: Measured, sides: _Sides, stats: Mapping[str, PerSide] | None
) -> tuple[Exits, dict[str, str]]:
    """Exits per IPI from kvm_exit where it fires, else from KVM's statistics."""
    absent: dict[str, str] = {}
    by_reason = _kvm_exits(measured, sides)
    source = KVM_EXIT_SOURCE if by_reason else None
    if source is None and stats is not None:  # which may have counted none: that is a result
        by_reason = {k: v for k, v in stats.items() if k.endswith(_EXIT_COUNTERS)}
        source = KVM_STATS_SOURCE
    if source is None and (unsorted := _kvm_exits_counted(measured)) is not None:
        by_reason, source = {"exits": sides.per_ipi(unsorted)}, KVM_EXIT_UNSORTED
    if source is None:
        nothing = "neither kvm_exit nor KVM_GET_STATS_FD counts here"
        absent = {"exits.source": nothing, "exits.sender": nothing, "exits.target": nothing}
    if measured.scenario.pattern == Pattern.SELF:
        absent["exits.target"] = "the sender is the target"
    sender = {name: side.sender for name, side in by_reason.items() if side.sender}
    target = {name: side.target for name, side in by_reason.items() if side.target}
    return (
        Exits(
            source,
            None if "exits.sender" in absent else sender,
            None if "exits.target" in absent else target,
        ),
        absent,
    )


def _kvm_exits_counted(measured: Measured) -> NDArray[np.int64] | None:
    """kvm_exit per vCPU as the rings' heads counted it, None where it never fired."""
    counted = [r.seen[Kind.KVM_EXIT] for r in measured.headline if r.seen is not None]
    total = np.sum(counted, axis=0) if counted else np.zeros(1, np.int64)
    return np.asarray(total, np.int64) if total.any() else None


def _by_reason(measured: Measured) -> dict[tuple[int, str], list[ExitTable]]:
    """(vCPU, reason name) to the exits of that reason, from every recorded repetition."""
    found: dict[tuple[int, str], list[ExitTable]] = {}
    for repetition in measured.headline:
        for table in repetition.watched.exits if repetition.watched else ():
            pairs = np.unique(np.stack([table.isa.astype(np.int64), table.reason]), axis=1)
            for isa, reason in pairs.T:
                hit = (table.isa == isa) & (table.reason == reason)
                part = ExitTable(
                    table.vcpu,
                    table.isa[hit],
                    table.reason[hit],
                    table.cycles[hit],
                    table.in_deliver_cycles[hit],
                )
                key = (table.vcpu, reason_name(int(isa), int(reason)))
                found.setdefault(key, []).append(part)
    return found


def _kvm_exits(measured: Measured, sides: _Sides) -> dict[str, PerSide]:
    """Reason name to exits per IPI, most frequent first, after the total as `exits`."""
    n_vcpus = measured.headline[0].n_vcpus
    counts: dict[str, NDArray[np.int64]] = {}
    for (vcpu, name), parts in _by_reason(measured).items():
        per_vcpu = counts.setdefault(name, np.zeros(n_vcpus, np.int64))
        per_vcpu[vcpu] += sum(len(part.reason) for part in parts)
    if not counts:
        return {}
    ordered = sorted(counts.items(), key=lambda item: (-int(item[1].sum()), item[0]))
    total = np.stack(list(counts.values())).sum(axis=0)
    return {"exits": sides.per_ipi(total), **{n: sides.per_ipi(c) for n, c in ordered}}


def _exit_times(measured: Measured, watched: Sequence[Watched]) -> tuple[ExitTime, ...]:
    """How long exits took by side and reason, the longest share of D first."""
    deliver = sum(int(r.cycles.deliver.sum()) for r in measured.headline)
    by_side: dict[tuple[str, str], list[ExitTable]] = {}
    for (vcpu, name), parts in _by_reason(measured).items() if watched else ():
        side = "sender" if vcpu == SENDER else "target"
        by_side.setdefault((side, name), []).extend(parts)
    rows = []
    for (side, name), parts in by_side.items():
        cycles = np.concatenate([part.cycles for part in parts])
        paired = summarise(cycles[cycles != ABSENT])
        covered = sum(int(part.in_deliver_cycles.sum()) for part in parts)
        rows.append(
            ExitTime(
                side=side,
                reason=name,
                exits=len(cycles),
                unpaired=int(np.count_nonzero(cycles == ABSENT)),
                p50_cycles=paired.p50 if paired else None,
                p99_cycles=paired.p99 if paired else None,
                share_of_deliver=covered / deliver if deliver else 0.0,
            )
        )
    return tuple(sorted(rows, key=lambda row: (row.side, -row.share_of_deliver, row.reason)))


def _events_per_ipi(storms: Sequence[Repetition], sides: _Sides) -> dict[str, PerSide] | None:
    """Tracepoint name to events per IPI, for every one that fired."""
    counted = [storm.seen for storm in storms if storm.seen is not None]
    if not counted:
        return None
    seen = np.stack(counted).sum(axis=0)
    return {kind.name.lower(): sides.per_ipi(seen[kind]) for kind in Kind if seen[kind].any()}


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


def _interrupts(watched: Sequence[Watched]) -> dict[str, dict[str, int]] | None:
    """Row of /proc/interrupts to CPU to increase; a row with an unknown part is left out."""
    deltas = [w.interrupts for w in watched if w.interrupts is not None]
    if not deltas:
        return None
    total: dict[str, dict[str, int]] = {}
    for row in deltas[0].rows:
        if any(delta.total(row) is None for delta in deltas):
            continue
        per_cpu = total.setdefault(row, {})
        for delta in deltas:
            for cpu, n in zip(delta.cpus, delta.rows[row], strict=True):
                per_cpu[str(cpu)] = per_cpu.get(str(cpu), 0) + (n or 0)
    return total


def _added(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for part in parts:
        for name, n in part.items():
            total[name] = total.get(name, 0) + n
    return total


_OF_TRACED_ROWS = (
    "paths",
    "stages",
    "exit_times",
    "late_posts",
    "host_interrupts",
    "unmatched_events",
)


def _absent(
    storms: Sequence[Repetition],
    watched: Sequence[Watched],
    stats: Mapping[str, PerSide] | None,
) -> dict[str, str]:
    """Why what is null is null, but for the exits."""
    interrupts = _interrupts(watched)
    reasons = {
        "send_cycles": _nothing_of(r.cycles.send for r in storms),
        "deliver_cycles": _nothing_of(r.cycles.deliver for r in storms),
        "round_trip_cycles": _nothing_of(r.cycles.round_trip for r in storms),
    }
    if stats is None:
        reasons["kvm_stats"] = "this KVM has no KVM_GET_STATS_FD"
    if all(r.seen is None for r in storms):
        reasons["events_per_ipi"] = _UNTRACED
    if not watched:
        traced = any(r.mode == Mode.FULL for r in storms)
        why = "host and guest could not be put on one clock" if traced else _UNTRACED
        return _known(reasons) | dict.fromkeys(_OF_TRACED_ROWS, why)
    reasons["stages"] = reasons["deliver_cycles"]
    if not any(len(table.reason) for w in watched for table in w.exits):
        reasons["exit_times"] = "kvm_exit never fired"
    if interrupts is None:
        reasons["host_interrupts"] = "/proc/interrupts cannot be read"
    if not any(row in POSTED_ROWS for row in interrupts or {}):
        reasons["late_posts"] = "/proc/interrupts has no rows for posted interrupts"
    return _known(reasons)


def _nothing_of(parts: Iterable[NDArray[np.int64]]) -> str | None:
    return None if any(len(part) for part in parts) else "no IPI got that far"


def _known(reasons: Mapping[str, str | None]) -> dict[str, str]:
    return {name: why for name, why in reasons.items() if why is not None}


def _notes(scenario: Scenario, stats: Mapping[str, PerSide] | None) -> Iterable[str]:
    """Where KVM's counters show that the target was not in the state asked for."""
    if scenario.pattern == Pattern.SELF or stats is None:
        return
    zero = PerSide(0.0, 0.0)
    halts = stats.get("halt_exits", zero).target
    polled = stats.get("halt_successful_poll", zero).target
    slept = stats.get("halt_wakeup", zero).target
    if scenario.target_state in {TargetState.HALTED, TargetState.BLOCKED}:
        if halts < _MOSTLY:
            yield f"the target was in HLT for only {halts:.0%} of the IPIs; try a larger --pace"
        elif scenario.target_state == TargetState.BLOCKED and slept < _MOSTLY:
            yield f"the target's thread slept for only {slept:.0%} of the IPIs; raise --pace"
        elif polled or slept:
            yield f"host found the target by polling {polled:.0%}, asleep {slept:.0%}"
    elif halts > _MOSTLY:
        yield "the target halted although it should have been running"


def observer_costs(measured: Measured) -> dict[str, ObserverCost]:
    """What counting and recording cost each metric's median.

    The n-th repetitions of the modes ran next to each other and form the n-th pair.
    """
    metrics: dict[str, Callable[[Cycles], NDArray[np.int64]]] = {
        "send": lambda cycles: cycles.send,
        "deliver": lambda cycles: cycles.deliver,
        "round_trip": lambda cycles: cycles.round_trip,
    }
    costs = {}
    for name, of in metrics.items():
        medians = {mode: [median(of(r.cycles)) for r in measured.of(mode)] for mode in Mode}
        off, counting, full = ([m for m in medians[mode] if m is not None] for mode in Mode)
        if not off or not len(off) == len(counting) == len(full):
            continue
        costs[name] = ObserverCost(
            off_p50=int(np.median(off)),
            counting_p50=int(np.median(counting)),
            full_p50=int(np.median(full)),
            counting=paired_difference(off, counting),
            full=paired_difference(off, full),
        )
    return costs
