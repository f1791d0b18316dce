# SPDX-License-Identifier: Apache-2.0
"""From pairs of samples to rows: the change, its significance, and the verdict."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ipitrace.compare.model import Figures, MinimumEffect, Row, Verdict
from ipitrace.compare.pairs import MetricPair
from ipitrace.compare.statistics import (
    ALPHA,
    Estimate,
    Values,
    cliffs_delta,
    fewest,
    holm,
    median_interval,
    p_value,
    shift,
    student,
    wanted,
)
from ipitrace.words.metrics import Metric, Scale


@dataclass(frozen=True)
class _Found:
    """The results of the tests of one pair, on the scale of the tests."""

    change: Estimate
    p: float


def judge(
    family: Sequence[MetricPair],
    minimum: MinimumEffect,
    moves: Mapping[tuple[str, str], MetricPair],
) -> tuple[Row, ...]:
    """The rows of metrics whose p values are corrected together; `moves` as moves() has them."""
    found = [_test(pair, len(family)) for pair in family]
    moved = [moves.get((pair.scenario, pair.metric.name)) for pair in family]
    corrected = holm([f.p for f in found])
    return tuple(
        _row(pair, result, p, _minimum(pair.metric, minimum), len(family), move=move)
        for pair, result, p, move in zip(family, found, corrected, moved, strict=True)
    )


def _test(pair: MetricPair, family: int) -> _Found:
    """Test the units; with too few recordings for ranks, two tests must agree.

    Student's t over the recordings includes the differences between recordings. The U test over
    their repetitions prevents that a few equal recordings count as proof of no variation.
    """
    scale = _scale(pair.metric)
    base, patched = map(scale, pair.units)
    if not pair.several or min(len(base), len(patched)) >= fewest(family):
        return _Found(shift(base, patched), p_value(base, patched))
    p, between = student(base, patched)
    repetitions = tuple(map(scale, pair.repetitions))
    within = shift(*repetitions)
    return _Found(_hull(between, within), max(p, p_value(*repetitions)))


def _hull(one: Estimate, other: Estimate) -> Estimate:
    """The first estimate, with an interval that encloses both intervals."""
    if None in {one.low, one.high, other.low, other.high}:
        return Estimate(one.value, None, None)
    bounds = [b for b in (one.low, one.high, other.low, other.high) if b is not None]
    return Estimate(one.value, min(bounds), max(bounds))


def _scale(metric: Metric) -> Callable[[Values], Values]:
    """The scale of the tests: logarithms of cycles (a difference is a ratio), else the values."""
    return np.log if metric.scale == Scale.RELATIVE else np.asarray


def _unscaled(metric: Metric, change: float) -> float:
    """A difference on the scale of the tests as a share of the base, or unchanged."""
    return float(np.expm1(change)) if metric.scale == Scale.RELATIVE else float(change)


def _minimum(metric: Metric, minimum: MinimumEffect) -> float:
    if metric.scale == Scale.RELATIVE:
        return minimum.cycles
    return minimum.exits if metric.name.startswith("exits.") else minimum.paths


def _row(
    pair: MetricPair,
    found: _Found,
    corrected: float,
    minimum: float,
    family: int,
    *,
    move: MetricPair | None,
) -> Row:
    low, high = (
        None if bound is None else _unscaled(pair.metric, bound)
        for bound in (found.change.low, found.change.high)
    )
    change = Estimate(_unscaled(pair.metric, found.change.value), low, high)
    verdict = _verdict(pair.metric, change, corrected, minimum)
    if move is not None and verdict not in {Verdict.SAME, Verdict.INCONCLUSIVE}:
        verdict = _by_move(change.value, _test(move, family).change)
    why, more = None, None
    if verdict == Verdict.INCONCLUSIVE:
        least = 0.0 if low is None or high is None else max(low, -high)  # what the interval allows
        why, more = _lacking(pair, max(minimum, least), family)
    base, patched = pair.units
    return Row(
        scenario=pair.scenario,
        metric=pair.metric.name,
        unit=pair.metric.unit,
        headline=pair.metric.headline,
        scale=pair.metric.scale,
        base=_figures(base),
        patched=_figures(patched),
        change=change.value,
        change_low=low,
        change_high=high,
        p=found.p,
        p_corrected=corrected,
        effect=cliffs_delta(base, patched),
        minimum_effect=minimum,
        between_recordings=_between(pair),
        verdict=verdict,
        why=why,
        wanted=more,
    )


def _figures(values: Values) -> Figures:
    middle = median_interval(values)
    return Figures(len(values), middle.value, middle.low, middle.high)


def _between(pair: MetricPair) -> float | None:
    """The largest difference between two recordings of one side."""
    if not pair.several:
        return None
    return max(_unscaled(pair.metric, np.ptp(_scale(pair.metric)(side))) for side in pair.units)


def _verdict(metric: Metric, change: Estimate, corrected: float, minimum: float) -> Verdict:
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


def _by_move(change: float, towards_better: Estimate) -> Verdict:
    """The verdict on a path whose share changed, by where most of the change went or came from."""
    low, high = towards_better.low, towards_better.high
    if low is None or high is None or abs(towards_better.value) < abs(change) / 2:
        return Verdict.CHANGED
    return Verdict.BETTER if low > 0 else Verdict.WORSE if high < 0 else Verdict.CHANGED


def _lacking(pair: MetricPair, change: float, family: int) -> tuple[str, int]:
    """The reason for no decision, and about how many units a side would show `change`."""
    base, patched = map(_scale(pair.metric), pair.units)
    n = min(len(base), len(patched))
    would = wanted(base, patched, change, family)
    units = "recordings" if pair.several else "repetitions"
    if n < fewest(family):
        return f"too few {units}", would
    return f"too much noise between {units}", max(would, n + 1)
