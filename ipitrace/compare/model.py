# SPDX-License-Identifier: Apache-2.0
"""What a comparison is: plain data, and as JSON."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

SCHEMA_VERSION = 2
"""Described by schemas/compare.schema.json.

History:
    1  first version.
    2  a gate's `held` is `state`, and it has a `kind`.
"""


class Verdict(StrEnum):
    """What can be said of a metric; `changed` where neither way is better."""

    BETTER = "better"
    WORSE = "worse"
    SAME = "same"
    CHANGED = "changed"
    INCONCLUSIVE = "inconclusive"


class GateKind(StrEnum):
    """What a gate asks for, spelled as its option is."""

    FAIL_ON = "fail-on"  # worse by no more than the limit
    REQUIRE = "require"  # better by the limit at least


class GateState(StrEnum):
    """What can be said of a gate."""

    HELD = "held"
    BROKEN = "broken"
    OPEN = "open"


@dataclass(frozen=True)
class MinimumEffect:
    """The smallest change that matters, for better or worse.

    Attributes:
        cycles: as a share of the base.
        exits: per IPI.
        paths: as a share of the IPIs.
    """

    cycles: float = 0.02
    exits: float = 0.05
    paths: float = 0.01


@dataclass(frozen=True)
class Side:
    """One side of a comparison.

    Attributes:
        name: what the person called it.
        recordings: how many it has.
        started_at: of the first of them; in UTC, as reading.py gives it.
        last_started_at: of the last.
        kernel: its host's kernel release; None when not known.
        emulated: by what its host is; None of a real one.
    """

    name: str
    recordings: int
    started_at: str
    last_started_at: str
    kernel: str | None
    ipitrace_version: str
    emulated: str | None


@dataclass(frozen=True)
class Figures:
    """One metric on one side: the median of its `n` units and its 95 % interval.

    The units are the repetitions of the side's only recording. Where a side of the comparison
    has several recordings these are, each by the median of its repetitions.
    """

    n: int
    median: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Row:
    """One metric of one scenario.

    Attributes:
        headline: the comparison's verdict rests on it.
        scale: `relative`, then the change is a share of the base; or `absolute`.
        change: Hodges and Lehmann's estimate (with too few recordings for ranks: the difference
            of means); low and high its 95 % interval.
        p: of the metric by itself; p_corrected: Holm's, within the family of the headline
            metrics or that of the others.
        effect: Cliff's delta, patched against base.
        minimum_effect: a change smaller than this counts as none.
        between_recordings: the largest difference between two recordings of one side, told as
            the change is; None where each side has one.
        why: what an inconclusive verdict lacks.
        wanted: about how many units a side would tell a change of minimum_effect, or the least
            that the interval allows, where that is larger.
    """

    scenario: str
    metric: str
    unit: str
    headline: bool
    scale: str
    base: Figures
    patched: Figures
    change: float
    change_low: float | None
    change_high: float | None
    p: float
    p_corrected: float
    effect: float
    minimum_effect: float
    between_recordings: float | None
    verdict: Verdict
    why: str | None = None
    wanted: int | None = None


@dataclass(frozen=True)
class FingerprintDifference:
    """An item of the fingerprint that is not the same on both sides."""

    key: str
    base: Any
    patched: Any
    accepted: str


@dataclass(frozen=True)
class Missing:
    """A headline metric that could not be compared."""

    scenario: str
    metric: str
    why: str


@dataclass(frozen=True)
class GateResult:
    """One gate on one metric of one scenario.

    Attributes:
        gate: as the person wrote it.
        p_corrected: Holm's, within the metrics that have a gate.
    """

    gate: str
    kind: GateKind
    scenario: str
    metric: str
    p_corrected: float
    state: GateState
    why: str


@dataclass(frozen=True)
class Comparison:
    """One side held against another.

    Attributes:
        missing: headline metrics that could not be compared.
        differences: what is not the same and was let pass, with the reason.
        interleaved: both sides were measured in turn; else what differs between any two runs
            of one configuration is part of every change.
        verdict: over the headline metrics.
        sentence: the verdict in words.
    """

    base: Side
    patched: Side
    confidence: float
    interleaved: bool
    verdict: Verdict
    sentence: str
    rows: tuple[Row, ...]
    missing: tuple[Missing, ...]
    gates: tuple[GateResult, ...]
    differences: tuple[FingerprintDifference, ...]

    @property
    def headline(self) -> tuple[Row, ...]:
        """The rows that the verdict rests on."""
        return tuple(row for row in self.rows if row.headline)


def to_json(comparisons: tuple[Comparison, ...], anchors: tuple[Mapping[str, Any], ...]) -> str:
    """All comparisons as one document; anchors apart, since nothing here measured them."""
    document: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "comparisons": [asdict(comparison) for comparison in comparisons],
    }
    if anchors:
        document["anchors"] = list(anchors)
    return json.dumps(document, indent=2) + "\n"
