# SPDX-License-Identifier: Apache-2.0
"""The data of a comparison, and its JSON form."""

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
    """The verdict on a metric; `changed` if neither direction is better."""

    BETTER = "better"
    WORSE = "worse"
    SAME = "same"
    CHANGED = "changed"
    INCONCLUSIVE = "inconclusive"


class GateKind(StrEnum):
    """The kind of a gate, spelled as its option."""

    FAIL_ON = "fail-on"  # worse by no more than the limit
    REQUIRE = "require"  # better by at least the limit


class GateState(StrEnum):
    """The state of a gate."""

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
        name: the user's name for it.
        recordings: the number of its recordings.
        started_at: start of the first recording, in UTC as reading.py converts it.
        last_started_at: start of the last recording.
        kernel: the host's kernel release; None if not known.
        emulated: the emulator that runs the host; None if the host is real.
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

    If each side has one recording, the units are its repetitions. If a side has several
    recordings, the units are the recordings, each represented by the median of its repetitions.
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
        scale: `relative`: the change is a share of the base; or `absolute`.
        change: Hodges and Lehmann's estimate (with too few recordings for ranks: the difference
            of means); low and high are its 95 % interval.
        p: p value of the metric by itself; p_corrected: Holm's correction within the family of
            the headline metrics or that of the others.
        effect: Cliff's delta, patched compared with base.
        minimum_effect: a change smaller than this counts as none.
        between_recordings: the largest difference between two recordings of one side, on the
            same scale as the change; None if each side has one recording.
        why: why the verdict is inconclusive.
        wanted: about how many units a side would show a change of minimum_effect, or the
            smallest change that the interval allows, if that is larger.
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
    """An item of the fingerprint that differs between the sides."""

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
        gate: as the user wrote it.
        p_corrected: Holm's correction within the metrics that have a gate.
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
    """One side compared with another.

    Attributes:
        missing: headline metrics that could not be compared.
        differences: differences that were accepted, with the reason.
        interleaved: both sides were measured in alternation. Otherwise the differences between
            any two runs of one configuration are part of every change.
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
    """All comparisons as one document; anchors are separate: ipitrace did not measure them."""
    document: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "comparisons": [asdict(comparison) for comparison in comparisons],
    }
    if anchors:
        document["anchors"] = list(anchors)
    return json.dumps(document, indent=2) + "\n"
