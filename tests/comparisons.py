# SPDX-License-Identifier: Apache-2.0
"""Made-up runs to compare, with the truth known beforehand."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from runs import made_run, measured_row

from ipitrace.compare import Settings, compare
from ipitrace.compare.model import Comparison
from ipitrace.recording.result import RunResult
from ipitrace.recording.row import ExitsPerIpi, Percentiles, RepetitionFigures, ScenarioResult

TAILS = {"p50": 1.0, "p90": 1.5, "p99": 3.0, "p999": 8.0}
TRUTH = {"send": 20_000, "deliver": 50_000, "round_trip": 100_000}


_row = functools.cache(measured_row)
_run = functools.cache(made_run)


def figures(
    order: int,
    cycles: Mapping[str, float],
    *,
    mode: str = "off",
    exits: ExitsPerIpi | None = None,
    paths: Mapping[str, float] | None = None,
) -> RepetitionFigures:
    """One repetition with these medians."""
    made = {
        f"{kind}_cycles": Percentiles(**{p: round(value * k) for p, k in TAILS.items()})
        for kind, value in cycles.items()
    }
    return RepetitionFigures(order=order, mode=mode, sent=1000, exits=exits, paths=paths, **made)


def exits_of(sender: float, target: float | None = 0.0, source: str = "kvm_exit") -> ExitsPerIpi:
    by_reason = {"exits": sender, "MSR_WRITE": sender}
    return ExitsPerIpi(source, by_reason, None if target is None else {"exits": target})


def row_of(
    name: str,
    medians: Sequence[Mapping[str, float]],
    *,
    exits: Sequence[ExitsPerIpi] = (),
    paths: Sequence[Mapping[str, float]] = (),
) -> ScenarioResult:
    """A scenario of these repetitions: each once with nobody watching and once recorded."""
    counted = exits or [exits_of(1.0)] * len(medians)
    went = paths or [{"msr-exit": 1.0}] * len(medians)
    found = []
    for i, (cycles, count, path) in enumerate(zip(medians, counted, went, strict=True)):
        found.append(figures(2 * i, cycles))
        watched = {kind: 1.3 * value for kind, value in cycles.items()}
        found.append(figures(2 * i + 1, watched, mode="full", exits=count, paths=path))
    return replace(_row(name), exits=counted[0], repetition_figures=tuple(found))


def noisy(
    rng: np.random.Generator, n: int, cv: float, factor: float = 1.0
) -> list[dict[str, float]]:
    """n repetitions, log-normal with this spread, S, D and R each by itself."""
    return [
        {kind: value * factor * rng.lognormal(0, cv) for kind, value in TRUTH.items()}
        for _ in range(n)
    ]


def run_of(*rows: ScenarioResult, **changes: Any) -> RunResult:
    return replace(_run(), scenarios=rows, **changes)


def steady(n: int = 8, factor: float = 1.0, **row: Any) -> RunResult:
    """A run of one scenario that hardly varies."""
    medians = [
        {kind: value * factor * (1 + i / 10_000) for kind, value in TRUTH.items()} for i in range(n)
    ]
    return run_of(row_of("unicast-running", medians, **row))


def held_against(
    base: RunResult | Sequence[RunResult], patched: RunResult | Sequence[RunResult], **settings: Any
) -> Comparison:
    """Compare two sides of one or several recordings."""
    sides = [
        [(f"{name}{i or ''}", run) for i, run in enumerate(_listed(side))]
        for name, side in (("base", base), ("patched", patched))
    ]
    return compare(sides[0], sides[1], ("base", "patched"), Settings(**settings))


def _listed(side: RunResult | Sequence[RunResult]) -> Sequence[RunResult]:
    return [side] if isinstance(side, RunResult) else side
