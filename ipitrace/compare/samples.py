# SPDX-License-Identifier: Apache-2.0
"""From a run to samples: one value per repetition for each scenario and metric."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ipitrace.recording.row import Percentiles, RepetitionFigures, ScenarioResult
from ipitrace.words.metrics import (
    ALL_TIMINGS,
    PERCENTILES,
    SIDES,
    TOTAL_EXITS,
    Metric,
    cycles_metric,
    exits_metric,
    path_metric,
)
from ipitrace.words.scenarios import PROVING, Mode


@dataclass(frozen=True)
class Sample:
    """One metric's values in the order of the repetitions."""

    metric: Metric
    values: NDArray[np.float64]


def samples(row: ScenarioResult) -> dict[str, Sample]:
    """The scenario's samples by the metric's name.

    Cycles are from the repetitions in mode `off`. Exits and paths are from the recorded
    repetitions, or from mode `off` if none was recorded.
    """
    unwatched = [r for r in row.repetition_figures if r.mode == Mode.OFF]
    recorded = [r for r in row.repetition_figures if r.mode in PROVING] or unwatched
    return {
        s.metric.name: s for s in (*_cycles(unwatched), *_exits(row, recorded), *_paths(recorded))
    }


def _cycles(repetitions: Sequence[RepetitionFigures]) -> Iterator[Sample]:
    for timing in ALL_TIMINGS:
        figures: list[Percentiles | None] = [getattr(r, timing.field) for r in repetitions]
        if None in figures:  # excluding a repetition would bias the sample
            continue
        for name, field in PERCENTILES.items():
            values = np.array([getattr(f, field) for f in figures], float)
            if len(values) and values.min() > 0:  # a change is a ratio
                yield Sample(cycles_metric(timing.name, name), values)


def _exits(row: ScenarioResult, repetitions: Sequence[RepetitionFigures]) -> Iterator[Sample]:
    """From one source only: KVM's statistics have other reasons than kvm_exit."""
    source = None if row.exits is None else row.exits.source
    counted = [r.exits for r in repetitions if r.exits is not None and r.exits.source == source]
    for side in SIDES:
        by_reason = [getattr(exits, side) for exits in counted]
        if by_reason and None not in by_reason:
            for reason in _names(by_reason) or [TOTAL_EXITS]:
                values = np.array([counts.get(reason, 0.0) for counts in by_reason], float)
                yield Sample(exits_metric(side, reason), values)


def _paths(repetitions: Sequence[RepetitionFigures]) -> Iterator[Sample]:
    shares = [r.paths for r in repetitions if r.paths is not None]
    for path in _names(shares):
        values = np.array([share.get(path, 0.0) for share in shares], float)
        yield Sample(path_metric(path), values)


def _names(mappings: Sequence[Mapping[str, float]]) -> list[str]:
    return list(dict.fromkeys(name for mapping in mappings for name in mapping))
