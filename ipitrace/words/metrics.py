# SPDX-License-Identifier: Apache-2.0
"""Every metric that can be compared: its unit, the better direction, one sentence."""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from ipitrace.base.errors import UsageError
from ipitrace.words.paths import PATH_RANKS


class Scale(StrEnum):
    """How a change of a metric is expressed."""

    RELATIVE = "relative"  # as a share of the base
    ABSOLUTE = "absolute"  # in the metric's own unit


@dataclass(frozen=True)
class Metric:
    """One figure of one scenario.

    Attributes:
        name: the spelling in gates and outputs.
        better: -1 if less is better, 1 if more is better, 0 if neither is.
        headline: the verdict of a comparison rests on this metric.
    """

    name: str
    unit: str
    scale: Scale
    better: int
    headline: bool
    about: str


PERCENTILES: Final = {"p50": "p50", "p90": "p90", "p99": "p99", "p99.9": "p999"}
"""Spelling of a percentile to its field in result.Percentiles."""


@dataclass(frozen=True)
class Timing:
    """One of the figures that result from the guest's stamps of each IPI, in TSC cycles.

    Attributes:
        name: the spelling in metrics, options and JSON.
        letter: the spelling in tables and texts.
        meaning: one sentence.
        until: the end of the interval as tables print it, if the name does not imply it.
    """

    name: str
    letter: str
    meaning: str
    until: str = ""

    @property
    def field(self) -> str:
        """The name of its field in result.RepetitionFigures and result.ScenarioResult."""
        return f"{self.name}_cycles"

    @property
    def label(self) -> str:
        """The explanation in a table's title."""
        letter = f"{self.letter}: {self.until}" if self.until else self.letter
        return f"{self.name.replace('_', ' ')} ({letter})"


SEND: Final = Timing("send", "S", "cycles that the sender spends in sending")
DELIVER: Final = Timing(
    "deliver",
    "D",
    "cycles from before the send to the handler's first instruction",
    "to the handler's first instruction",
)
LAST_DELIVER: Final = Timing(
    "last_deliver",
    "D last",
    "cycles from before the send to the handler's first instruction on the last target",
    "until all targets have it",
)
ROUND_TRIP: Final = Timing("round_trip", "R", "cycles from before the send to the acknowledgement")
TIMINGS: Final = (SEND, DELIVER, ROUND_TRIP)
"""The timings that every scenario has."""
ALL_TIMINGS: Final = (SEND, DELIVER, LAST_DELIVER, ROUND_TRIP)
"""With that of scenarios whose sends have several targets."""

_BY_NAME: Final = {timing.name: timing for timing in ALL_TIMINGS}
SIDES: Final = {"sender": "the sender's, per send", "target": "the targets', per delivery"}
TOTAL_EXITS: Final = "exits"

_BEST_RANK: Final = min(PATH_RANKS.values())
_WORST_RANK: Final = max(PATH_RANKS.values())


def cycles_metric(kind: str, percentile: str) -> Metric:
    """A percentile of a timing: `deliver.p50`."""
    timing = _BY_NAME[kind]
    about = f"{percentile} of the {timing.meaning} ({timing.letter})"
    headline = percentile == "p50" and timing in TIMINGS
    return Metric(f"{kind}.{percentile}", "cycles", Scale.RELATIVE, -1, headline, about)


def exits_metric(side: str, reason: str) -> Metric:
    """Exits per IPI of one side: `exits.sender` (all), `exits.sender.MSR_WRITE` (one reason)."""
    total = reason == TOTAL_EXITS
    name = f"exits.{side}" if total else f"exits.{side}.{reason}"
    about = f"VM exits, {SIDES[side]}" + ("" if total else f", because of {reason}")
    return Metric(name, "exits/IPI", Scale.ABSOLUTE, -1, total, about)


def path_metric(path: str) -> Metric:
    """The share of IPIs on a path: `path.exitless`.

    For a path between the best and the worst, neither more nor less is better by itself.
    """
    better = {_BEST_RANK: 1, _WORST_RANK: -1}.get(PATH_RANKS.get(path, -1), 0)
    return Metric(
        f"path.{path}",
        "share",
        Scale.ABSOLUTE,
        better,
        headline=False,
        about=f"IPIs on path {path}",
    )


def path_of(metric: Metric) -> str | None:
    """The path whose share the metric is; None for any other metric."""
    return metric.name.removeprefix("path.") if metric.name.startswith("path.") else None


def metric_of(name: str) -> Metric:
    """The metric with this full name."""
    kind, _dot, rest = name.partition(".")
    if kind in _BY_NAME:
        return cycles_metric(kind, rest)
    if kind == "path":
        return path_metric(rest)
    side, _dot, reason = rest.partition(".")
    return exits_metric(side, reason or TOTAL_EXITS)


CYCLES_METRICS: Final = tuple(cycles_metric(kind, p) for kind in _BY_NAME for p in PERCENTILES)


def expand(name: str) -> tuple[str, ...]:
    """The full names for a short name that a user gives.

    `deliver` means `deliver.p50`; `exits` means both `exits.sender` and `exits.target`.

    Raises:
        UsageError: there is no metric with that name.
    """
    if name in _BY_NAME:
        return (f"{name}.p50",)
    if name == "exits":
        return tuple(f"exits.{side}" for side in SIDES)
    known = {metric.name for metric in CYCLES_METRICS}
    if name in known or re.fullmatch(r"exits\.(sender|target)(\..+)?|path\..+", name):
        return (name,)
    raise UsageError(
        f"There is no metric {name[:60]!r}.",
        f"Known: {', '.join(_BY_NAME)} with {', '.join('.' + p for p in PERCENTILES)}; exits, "
        "exits.sender, exits.target, exits.SIDE.REASON; path.PATH.",
    )


def scale_of(name: str) -> Scale:
    """How a change of the metric with this full name is expressed."""
    return Scale.RELATIVE if name.partition(".")[0] in _BY_NAME else Scale.ABSOLUTE
