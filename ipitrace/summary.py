# SPDX-License-Identifier: Apache-2.0
"""From the repetitions of one scenario to its row: pure, no guest and no host needed."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ipitrace.correlate import Deliveries, pair_deliveries
from ipitrace.host.exit_reasons import reason_name
from ipitrace.layout import Kind
from ipitrace.model import Pattern, Scenario, Summary, TargetState
from ipitrace.result import Exits, ObserverCost, PerSide, ScenarioResult
from ipitrace.stats import summarise
from ipitrace.storm.driver import Storm

KVM_EXIT_SOURCE = "kvm_exit tracepoint"
KVM_STATS_SOURCE = "KVM_GET_STATS_FD"
SENDER = 0
_EXIT_COUNTERS = ("exits", "_exits")  # KVM's names: the total, and by reason
_MOSTLY = 0.5


@dataclass(frozen=True)
class TraceWindow:
    """What the host showed between a repetition's first and last measured send.

    Attributes:
        seen: events per kind and vCPU; shape (kinds, n_vcpus).
        events: records of layout.HOST_EVENT.
    """

    seen: NDArray[np.uint64]
    events: NDArray[np.void]


@dataclass(frozen=True)
class Repetition:
    """One storm, and what was traced of it; `trace` is None when probes were off."""

    storm: Storm
    trace: TraceWindow | None


@dataclass(frozen=True)
class Measured:
    """One scenario's repetitions, in the order run."""

    scenario: Scenario
    targets: tuple[int, ...]
    pace_cycles: int
    warmup: int
    repetitions: tuple[Repetition, ...]

    @property
    def headline(self) -> tuple[Repetition, ...]:
        """The repetitions the row is made of: the traced ones, or all where none was traced."""
        traced = tuple(r for r in self.repetitions if r.trace is not None)
        return traced or self.repetitions


def send_cycles(storm: Storm) -> NDArray[np.int64]:
    """S of every measured send."""
    return np.asarray(storm.sends["sent_tsc"] - storm.sends["send_tsc"], np.int64)


def round_trip_cycles(storm: Storm) -> NDArray[np.int64]:
    """R of every measured send that was acknowledged in time."""
    acknowledged = storm.sends[storm.sends["ack_tsc"] > 0]
    return np.asarray(acknowledged["ack_tsc"] - acknowledged["send_tsc"], np.int64)


def deliveries(storm: Storm, targets: Iterable[int]) -> list[Deliveries]:
    """Every target's handler entries, paired with their sends."""
    return [pair_deliveries(storm.sends, storm.receipts[target]) for target in targets]


def deliver_cycles(storm: Storm, targets: Iterable[int]) -> NDArray[np.int64]:
    """D of every handler entry on every target."""
    return np.concatenate([d.deliver_cycles for d in deliveries(storm, targets)])


def summarise_scenario(measured: Measured) -> ScenarioResult:
    """Make one row of a scenario's repetitions."""
    scenario, targets = measured.scenario, measured.targets
    storms = [repetition.storm for repetition in measured.headline]
    sent = sum(len(storm.sends) for storm in storms)
    delivered = sum(storm.handled[t] for storm in storms for t in targets)
    timed_out = sum(int(np.count_nonzero(storm.sends["ack_tsc"] == 0)) for storm in storms)
    sides = _Sides(scenario, targets, sent, max(delivered, 1))
    exits, absent = _exits(measured, sides)
    stats = _kvm_stats(storms, sides)
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
        coalesced=max(sent * len(targets) - delivered - timed_out, 0),
        incomplete=timed_out,
        send_cycles=_pooled(storms, send_cycles),
        deliver_cycles=_pooled(storms, lambda storm: deliver_cycles(storm, targets)),
        round_trip_cycles=_pooled(storms, round_trip_cycles),
        exits=exits,
        kvm_stats=stats,
        events_per_ipi=_events_per_ipi(measured, sides),
        absent=absent,
        notes=tuple(_notes(scenario, stats)),
    )


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


def _pooled(
    storms: Iterable[Storm], cycles: Callable[[Storm], NDArray[np.int64]]
) -> Summary | None:
    return summarise(np.concatenate([cycles(storm) for storm in storms]))


def _kvm_stats(storms: Sequence[Storm], sides: _Sides) -> dict[str, PerSide] | None:
    """KVM's counters per IPI that moved at all, `exits` among them."""
    totals: dict[str, list[int]] = {}
    for storm in storms:
        if storm.start.stats is None or storm.end.stats is None:
            return None
        for vcpu, (start, end) in enumerate(zip(storm.start.stats, storm.end.stats, strict=True)):
            for name, value in end.items():
                per_vcpu = totals.setdefault(name, [0] * len(storm.handled))
                per_vcpu[vcpu] += value - start[name]
    per_ipi = {name: sides.per_ipi(counts) for name, counts in totals.items() if any(counts)}
    return dict(sorted(per_ipi.items()))


def _exits(measured: Measured, sides: _Sides) -> tuple[Exits, dict[str, str]]:
    """Exits per IPI from kvm_exit where it fires, else from KVM's statistics."""
    absent: dict[str, str] = {}
    by_reason = _kvm_exits(measured, sides)
    source: str | None = KVM_EXIT_SOURCE
    if not by_reason:
        stats = _kvm_stats([r.storm for r in measured.headline], sides) or {}
        by_reason = {k: v for k, v in stats.items() if k.endswith(_EXIT_COUNTERS)}
        source = KVM_STATS_SOURCE
    if not by_reason:
        source = None
        absent["exits.sender"] = "neither kvm_exit nor KVM_GET_STATS_FD counted any"
    if measured.scenario.pattern == Pattern.SELF:
        absent["exits.target"] = "the sender is the target"
    elif source is None:
        absent["exits.target"] = absent["exits.sender"]
    sender = {name: side.sender for name, side in by_reason.items() if side.sender}
    target = {name: side.target for name, side in by_reason.items() if side.target}
    return (
        Exits(
            source,
            None if "exits.sender" in absent else sender,
            None if "exits.target" in absent else target,
        ),
        absent | _trace_absence(measured),
    )


def _trace_absence(measured: Measured) -> dict[str, str]:
    if measured.headline[0].trace is not None:
        return {}
    return {"events_per_ipi": "nothing was traced (--no-trace)"}


def _kvm_exits(measured: Measured, sides: _Sides) -> dict[str, PerSide]:
    """Reason name to exits per IPI, most frequent first, plus the total as `exits`."""
    n_vcpus = len(measured.headline[0].storm.handled)
    counts: dict[str, NDArray[np.int64]] = {}
    for repetition in measured.headline:
        if repetition.trace is None:
            continue
        events = repetition.trace.events
        exits = events[events["kind"] == Kind.KVM_EXIT]
        for isa, reason in {(int(e["detail"]), int(e["word"])) for e in _unique(exits)}:
            hit = exits[(exits["detail"] == isa) & (exits["word"] == reason)]
            per_vcpu = np.bincount(hit["vcpu"], minlength=n_vcpus)[:n_vcpus]
            name = reason_name(isa, reason)
            counts[name] = counts.get(name, np.zeros(n_vcpus, np.int64)) + per_vcpu
    if not counts:
        return {}
    ordered = sorted(counts.items(), key=lambda item: (-int(item[1].sum()), item[0]))
    total = np.sum(list(counts.values()), axis=0)
    return {"exits": sides.per_ipi(total), **{n: sides.per_ipi(c) for n, c in ordered}}


def _unique(exits: NDArray[np.void]) -> NDArray[np.void]:
    return np.unique(exits[["detail", "word"]])


def _events_per_ipi(measured: Measured, sides: _Sides) -> dict[str, PerSide] | None:
    """Tracepoint name to events per IPI, for every one that fired."""
    windows = [r.trace for r in measured.headline if r.trace is not None]
    if not windows:
        return None
    seen = np.stack([window.seen for window in windows]).sum(axis=0).astype(np.int64)
    return {kind.name.lower(): sides.per_ipi(seen[kind]) for kind in Kind if seen[kind].any()}


def _notes(scenario: Scenario, stats: Mapping[str, PerSide] | None) -> Iterable[str]:
    """Where KVM's counters show that the target was not in the state asked for."""
    if scenario.pattern == Pattern.SELF or stats is None:
        return
    zero = PerSide(0.0, 0.0)
    halts = stats.get("halt_exits", zero).target
    polled = stats.get("halt_successful_poll", zero).target
    slept = stats.get("halt_wakeup", zero).target
    if scenario.target_state in {TargetState.HALTED, TargetState.BLOCKED}:
        if "halt_exits" in stats and halts < _MOSTLY:
            yield f"the target was in HLT for only {halts:.0%} of the IPIs; try a larger --pace"
        elif scenario.target_state == TargetState.BLOCKED and slept < _MOSTLY:
            yield f"the target's thread slept for only {slept:.0%} of the IPIs; raise --pace"
        elif polled or slept:
            yield f"host found the target by polling {polled:.0%}, asleep {slept:.0%}"
    elif halts > _MOSTLY:
        yield "the target halted although it should have been running"


def observer_costs(measured: Measured) -> dict[str, ObserverCost]:
    """What tracing cost each metric's median, from neighbouring repetitions.

    Repetitions come in pairs of one untraced and one traced, in either order.
    """
    metrics: dict[str, Callable[[Storm], NDArray[np.int64]]] = {
        "send": send_cycles,
        "deliver": lambda storm: deliver_cycles(storm, measured.targets),
        "round_trip": round_trip_cycles,
    }
    costs = {}
    for name, cycles in metrics.items():
        medians = [(r.trace is not None, _median(cycles(r.storm))) for r in measured.repetitions]
        off = [m for traced, m in medians if not traced and m is not None]
        on = [m for traced, m in medians if traced and m is not None]
        if not off or len(off) != len(on):
            continue
        # repetition i of either kind belongs to pair i, whichever came first
        differences = [b - a for a, b in zip(off, on, strict=True)]
        costs[name] = ObserverCost(
            int(np.median(off)),
            int(np.median(on)),
            int(np.median(differences)),
            min(differences),
            max(differences),
        )
    return costs


def _median(cycles: NDArray[np.int64]) -> int | None:
    summary = summarise(cycles)
    return None if summary is None else summary.p50
