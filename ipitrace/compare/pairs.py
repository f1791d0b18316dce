# SPDX-License-Identifier: Apache-2.0
"""From two sides to pairs of samples: each metric of each scenario, on both sides."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ipitrace.compare.model import Missing
from ipitrace.compare.samples import Sample, samples
from ipitrace.compare.statistics import Values
from ipitrace.recording.result import RunResult
from ipitrace.recording.row import ScenarioResult
from ipitrace.words.metrics import CYCLES_METRICS, SIDES, Metric, Scale, metric_of
from ipitrace.words.scenarios import SENDERS_ONLY, ScenarioStatus


@dataclass(frozen=True)
class MetricPair:
    """One metric of one scenario on both sides.

    Attributes:
        base: for each recording of the side, one value for each repetition.
        patched: the same for the other side.
    """

    scenario: str
    metric: Metric
    base: tuple[Values, ...]
    patched: tuple[Values, ...]

    @property
    def several(self) -> bool:
        """Whether a side has several recordings, which are then the units of statistics."""
        return len(self.base) > 1 or len(self.patched) > 1

    @property
    def units(self) -> tuple[Values, Values]:
        """The medians of each side's recordings, or the repetitions of the only recording."""
        if not self.several:
            return self.base[0], self.patched[0]
        one, other = (
            np.array([np.median(values) for values in side]) for side in (self.base, self.patched)
        )
        return one, other

    @property
    def repetitions(self) -> tuple[Values, Values]:
        """Each side's repetitions, over all its recordings."""
        return np.concatenate(self.base), np.concatenate(self.patched)


def pairs(
    base: Sequence[RunResult], patched: Sequence[RunResult], *, cycles: bool, also: Collection[str]
) -> tuple[tuple[MetricPair, ...], tuple[Missing, ...]]:
    """Every metric that both sides have, and the headline metrics that a side lacks.

    A count or share that only one side has is 0 on the other, if its kind was counted there.

    Args:
        base: the recordings of one side; all recordings have the same scenarios.
        patched: the recordings of the other side.
        cycles: compare cycles, too; otherwise only counts and shares.
        also: full names of counts and shares to compare even if they never happened.
    """
    found: list[MetricPair] = []
    missing: list[Missing] = []
    for row in base[0].scenarios:
        if row.status != ScenarioStatus.MEASURED:
            continue
        sides = tuple(tuple(_samples(run, row.name) for run in side) for side in (base, patched))
        for name in _names([recording for side in sides for recording in side], also):
            metric = metric_of(name)
            if metric.scale == Scale.RELATIVE and not cycles:
                continue
            one, other = (_of_all(side, metric) for side in sides)
            if one and other:
                found.append(MetricPair(row.name, metric, one, other))
        has = {pair.metric.name for pair in found if pair.scenario == row.name}
        missing += _missing(row, has, cycles=cycles)
    return tuple(found), tuple(missing)


def _samples(run: RunResult, scenario: str) -> dict[str, Sample]:
    (row,) = [row for row in run.scenarios if row.name == scenario]
    return samples(row)


def _names(recordings: Sequence[dict[str, Sample]], also: Collection[str]) -> list[str]:
    return list(dict.fromkeys([*(name for r in recordings for name in r), *also]))


def _of_all(side: Sequence[dict[str, Sample]], metric: Metric) -> tuple[Values, ...]:
    """The metric's values in each recording; empty if one of them lacks it."""
    values = [_values(recording, metric) for recording in side]
    known = tuple(v for v in values if v is not None)
    return known if len(known) == len(values) else ()


def _values(recording: dict[str, Sample], metric: Metric) -> Values | None:
    """The metric's values; zeros if others of its kind were counted and this one never was."""
    if metric.name in recording:
        return recording[metric.name].values
    if metric.scale == Scale.RELATIVE:
        return None
    kind, side = metric.name.split(".")[:2]
    known = f"{kind}.{side}" if kind == "exits" else f"{kind}."
    like = next((s for other, s in recording.items() if other.startswith(known)), None)
    return None if like is None else np.zeros_like(like.values)


def _missing(row: ScenarioResult, has: Collection[str], *, cycles: bool) -> Iterator[Missing]:
    for metric in CYCLES_METRICS:
        if metric.headline and metric.name not in has:
            why = "a recording lacks these cycles" if cycles else "emulated and real cycles"
            yield Missing(row.name, metric.name, why)
    for side in SIDES:
        expected = side == "sender" or row.pattern not in SENDERS_ONLY
        if expected and f"exits.{side}" not in has:
            yield Missing(row.name, f"exits.{side}", "a recording did not count them")
