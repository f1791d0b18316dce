# SPDX-License-Identifier: Apache-2.0
"""Two recordings held against each other: is one better, by how much, and can it be believed?

How that is decided is written in docs/statistics.md.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ipitrace.compare.fingerprint import check_comparable
from ipitrace.compare.gates import Gate, check_gates
from ipitrace.compare.model import (
    Comparison,
    Figures,
    Held,
    MinimumEffect,
    Row,
    Side,
    Verdict,
)
from ipitrace.compare.samples import Sample, samples
from ipitrace.compare.statistics import (
    ALPHA,
    CONFIDENCE,
    Interval,
    cliffs_delta,
    fewest,
    holm,
    median_interval,
    p_value,
    shift,
    wanted,
)
from ipitrace.errors import ExitCode, UsageError
from ipitrace.metrics import Metric, Scale
from ipitrace.result import RunResult, ScenarioResult


@dataclass(frozen=True)
class Settings:
    """How to compare.

    Attributes:
        scenarios: only these; empty is all.
        allow: what may differ although it must match.
        interleaved: both sides were measured in turn.
    """

    gates: tuple[Gate, ...] = ()
    minimum: MinimumEffect = field(default_factory=MinimumEffect)
    allow: frozenset[str] = frozenset()
    scenarios: tuple[str, ...] = ()
    interleaved: bool = False


@dataclass(frozen=True)
class _Pair:
    """One metric of one scenario, on both sides."""

    scenario: str
    metric: Metric
    base: Sample
    patched: Sample


def compare(
    base: RunResult, patched: RunResult, names: tuple[str, str], settings: Settings
) -> Comparison:
    """Compare two runs; `names` are what the person calls them.

    Raises:
        HostError, MeasurementError: they are not comparable, or one cannot be trusted.
        UsageError: a scenario or a gate is about nothing that was measured.
    """
    if settings.scenarios:
        base, patched = (
            _only(run, name, settings.scenarios)
            for run, name in zip((base, patched), names, strict=True)
        )
    differences = check_comparable(base, patched, names, settings.allow)
    pairs = list(_pairs(base.scenarios, patched.scenarios))
    rows = (
        *_judge([p for p in pairs if p.metric.headline], settings.minimum),
        *_judge([p for p in pairs if not p.metric.headline], settings.minimum),
    )
    places = {(p.scenario, p.metric.name): i for i, p in enumerate(pairs)}
    rows = tuple(sorted(rows, key=lambda row: places[row.scenario, row.metric]))
    verdict = _overall([row for row in rows if row.headline])
    return Comparison(
        base=_side(base, names[0]),
        patched=_side(patched, names[1]),
        confidence=CONFIDENCE,
        interleaved=settings.interleaved,
        verdict=verdict,
        sentence=_sentence(verdict, rows, names, settings.minimum),
        rows=rows,
        gates=check_gates(settings.gates, rows),
        differences=differences,
    )


def exit_code(comparisons: Iterable[Comparison], *, strict: bool) -> ExitCode:
    """What the comparisons mean for a script.

    With gates they decide; without any the verdict does.
    """
    found = list(comparisons)
    gated = any(c.gates for c in found)
    held = [g.held for c in found for g in c.gates]
    failed = Held.BROKEN in held if gated else any(c.verdict == Verdict.WORSE for c in found)
    if failed:
        return ExitCode.REGRESSION
    undecided = (
        Held.OPEN in held if gated else any(c.verdict == Verdict.INCONCLUSIVE for c in found)
    )
    return ExitCode.UNTRUSTWORTHY if strict and undecided else ExitCode.OK


def _only(run: RunResult, name: str, scenarios: Sequence[str]) -> RunResult:
    rows = tuple(row for row in run.scenarios if row.name in scenarios)
    missing = sorted(set(scenarios) - {row.name for row in rows})
    if missing:
        raise UsageError(
            f"The run {name} has no scenario '{missing[0]}'.",
            f"It has {', '.join(row.name for row in run.scenarios)}.",
        )
    return replace(run, scenarios=rows)


def _side(run: RunResult, name: str) -> Side:
    kernel = (run.host.get("fingerprint") or {}).get("kernel_release")
    return Side(name, run.started_at, kernel, run.ipitrace_version)


def _pairs(base: Iterable[ScenarioResult], patched: Iterable[ScenarioResult]) -> Iterable[_Pair]:
    """Every metric that both sides have; counts and shares missing on one side are 0 there."""
    others = {row.name: row for row in patched if row.status == "measured"}
    for row in base:
        if row.status != "measured":
            continue
        ours, theirs = samples(row), samples(others[row.name])
        for name in dict.fromkeys([*ours, *theirs]):
            metric = (ours.get(name) or theirs[name]).metric
            if metric.scale == Scale.ABSOLUTE:
                one, other = (_or_zeros(side, name, metric) for side in (ours, theirs))
            else:
                one, other = ours.get(name), theirs.get(name)
            if one is not None and other is not None:
                yield _Pair(row.name, metric, one, other)


def _or_zeros(side: dict[str, Sample], name: str, metric: Metric) -> Sample | None:
    """The sample, or zeros where others of its kind were counted and this never happened."""
    if name in side:
        return side[name]
    kind = ".".join(name.split(".")[:2]) if name.startswith("exits.") else "path."
    like = next((s for other, s in side.items() if other.startswith(kind)), None)
    return None if like is None else Sample(metric, np.zeros_like(like.values))


def _judge(family: Sequence[_Pair], minimum: MinimumEffect) -> tuple[Row, ...]:
    """Rows of metrics whose p values are corrected together."""
    p_values = [p_value(pair.base.values, pair.patched.values) for pair in family]
    return tuple(
        _row(pair, p, corrected, _minimum(pair.metric, minimum), len(family))
        for pair, p, corrected in zip(family, p_values, holm(p_values), strict=True)
    )


def _minimum(metric: Metric, minimum: MinimumEffect) -> float:
    if metric.scale == Scale.RELATIVE:
        return minimum.cycles
    return minimum.exits if metric.name.startswith("exits.") else minimum.paths


def _row(pair: _Pair, p: float, corrected: float, minimum: float, family: int) -> Row:
    base, patched = pair.base.values, pair.patched.values
    change = _change(pair)
    verdict = _verdict(pair.metric, change, corrected, minimum)
    why, repetitions = None, None
    if verdict == Verdict.INCONCLUSIVE:
        why, repetitions = _lacking(pair, minimum, family)
    return Row(
        scenario=pair.scenario,
        metric=pair.metric.name,
        unit=pair.metric.unit,
        headline=pair.metric.headline,
        scale=pair.metric.scale,
        base=_figures(pair.base),
        patched=_figures(pair.patched),
        change=change.value,
        change_low=change.low,
        change_high=change.high,
        p=p,
        p_corrected=corrected,
        effect=cliffs_delta(base, patched),
        minimum_effect=minimum,
        verdict=verdict,
        why=why,
        repetitions_wanted=repetitions,
    )


def _figures(sample: Sample) -> Figures:
    middle = median_interval(sample.values)
    return Figures(len(sample.values), middle.value, middle.low, middle.high)


def _change(pair: _Pair) -> Interval:
    """As a share of the base (by way of logarithms, so that it is one of ratios), or plain."""
    base, patched = pair.base.values, pair.patched.values
    if pair.metric.scale == Scale.ABSOLUTE:
        return shift(base, patched)
    logs = shift(np.log(base), np.log(patched))
    low, high = (None if b is None else float(np.expm1(b)) for b in (logs.low, logs.high))
    return Interval(float(np.expm1(logs.value)), low, high)


def _verdict(metric: Metric, change: Interval, corrected: float, minimum: float) -> Verdict:
    if change.low is None or change.high is None:
        return Verdict.INCONCLUSIVE
    real = corrected <= ALPHA and (change.low > 0 or change.high < 0)
    if real and abs(change.value) >= minimum:
        if metric.better == 0:
            return Verdict.CHANGED
        return Verdict.BETTER if change.value * metric.better > 0 else Verdict.WORSE
    if -minimum < change.low and change.high < minimum:
        return Verdict.SAME
    return Verdict.INCONCLUSIVE


def _lacking(pair: _Pair, minimum: float, family: int) -> tuple[str, int]:
    """What an undecided metric lacks, and about how many repetitions a side would tell."""
    base, patched = pair.base.values, pair.patched.values
    n = min(len(base), len(patched))
    least = fewest(family)
    if n < least:
        return "too few repetitions", least
    if pair.metric.scale == Scale.RELATIVE:
        base, patched = np.log(base), np.log(patched)
    return "too much noise", max(wanted(base, patched, minimum, family), n + 1)


def _overall(rows: Sequence[Row]) -> Verdict:
    verdicts = {row.verdict for row in rows}
    for verdict in (Verdict.WORSE, Verdict.BETTER):
        if verdict in verdicts:
            return verdict
    return Verdict.SAME if verdicts == {Verdict.SAME} else Verdict.INCONCLUSIVE


def _sentence(
    verdict: Verdict, rows: Sequence[Row], names: tuple[str, str], minimum: MinimumEffect
) -> str:
    """The verdict in words."""
    headline = [row for row in rows if row.headline]
    of = {v: [row for row in headline if row.verdict == v] for v in Verdict}
    base, patched = names
    if verdict == Verdict.SAME:
        return (
            f"{patched} is the same as {base}: none of {len(headline)} headline metrics moved by "
            f"{100 * minimum.cycles:g} % of its cycles, or {minimum.exits:g} exits per IPI."
        )
    parts = []
    for moved in (Verdict.WORSE, Verdict.BETTER):
        if of[moved]:
            most = max(of[moved], key=lambda row: abs(row.change) / row.minimum_effect)
            more = f" and in {len(of[moved]) - 1} more" if len(of[moved]) > 1 else ""
            parts.append(f"{moved} in {most.metric} of {most.scenario} ({tell_change(most)}){more}")
    rest = [f"{len(of[v])} {v}" for v in (Verdict.SAME, Verdict.INCONCLUSIVE) if of[v]]
    if parts:
        tail = f"; of the other headline metrics {' and '.join(rest)}" if rest else ""
        return f"{patched} against {base}: {', but '.join(parts)}{tail}."
    worst = max(of[Verdict.INCONCLUSIVE], key=lambda row: row.repetitions_wanted or 0)
    return (
        f"Inconclusive: {len(of[Verdict.INCONCLUSIVE])} of {len(headline)} headline metrics could "
        f"not be decided; {worst.metric} of {worst.scenario} would take about "
        f"{worst.repetitions_wanted} repetitions a side ({worst.why})."
    )


def tell_change(row: Row) -> str:
    """A change and its interval: "+4.8 %, 95 % interval +4.1 to +5.5 %"."""
    if row.scale == Scale.RELATIVE:
        scaled = [
            None if v is None else 100 * v for v in (row.change, row.change_low, row.change_high)
        ]
        value, low, high = (None if v is None else f"{v:+.1f}" for v in scaled)
        unit = " %"
    else:
        value, low, high = (
            None if v is None else f"{v:+.3f}"
            for v in (row.change, row.change_low, row.change_high)
        )
        unit = "" if row.unit == "share" else f" {row.unit}"
    if low is None or high is None:
        return f"{value}{unit}, no interval"
    return f"{value}{unit}, {CONFIDENCE:.0%} interval {low} to {high}{unit}"
