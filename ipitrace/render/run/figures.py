# SPDX-License-Identifier: Apache-2.0
"""The figures of a scenario in long form: one metric, one value, one unit."""

from collections.abc import Iterator
from dataclasses import dataclass

from ipitrace.recording.row import ScenarioResult, Summary
from ipitrace.words.metrics import ALL_TIMINGS, exits_metric, path_metric
from ipitrace.words.scenarios import ScenarioStatus

_CYCLES = "cycles"


@dataclass(frozen=True)
class Figure:
    """One value of a scenario.

    Attributes:
        family: the kind of figure: sends, deliveries, cycles, exits or path.
        metric: the full name, as `compare` and gates spell it.
        part: labels and their values, which distinguish the figures of a family.
    """

    family: str
    metric: str
    part: tuple[tuple[str, str], ...]
    value: float
    unit: str


def figures_of(row: ScenarioResult) -> Iterator[Figure]:
    """The counts, the distributions of the timings, exits by reason and shares of paths."""
    if row.status != ScenarioStatus.MEASURED:
        return
    yield from _counts(row)
    for timing in ALL_TIMINGS:
        yield from _cycles(timing.name, getattr(row, timing.field))
    for side in ("sender", "target"):
        exits = getattr(row.exits, side) if row.exits is not None else None
        for reason, per_ipi in (exits or {}).items():
            metric = exits_metric(side, reason)
            part = (("side", side), ("reason", reason))
            yield Figure("exits", metric.name, part, per_ipi, metric.unit)
    for path, share in (row.paths or {}).items():
        metric = path_metric(path)
        yield Figure("path", metric.name, (("path", path),), share, metric.unit)


def _counts(row: ScenarioResult) -> Iterator[Figure]:
    for family, state, value in (
        ("sends", "sent", row.sent),
        ("sends", "incomplete", row.incomplete),
        ("deliveries", "delivered", row.delivered),
        ("deliveries", "coalesced", row.coalesced),
    ):
        yield Figure(family, state, (("state", state),), value, family)


def _cycles(kind: str, summary: Summary | None) -> Iterator[Figure]:
    if summary is None:
        return
    for name in ("min", "p50", "p90", "p99", "max"):
        part = (("metric", kind), ("percentile", name))
        yield Figure("cycles", f"{kind}.{name}", part, getattr(summary, name), _CYCLES)
