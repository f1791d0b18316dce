# SPDX-License-Identifier: Apache-2.0
"""OpenMetrics text: the one writer of every OpenMetrics document."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from ipitrace.base.foreign import plain

_MOST_CHARS: Final = 4000
"""More than a VM's name has with every character escaped: two names must not become one."""

Point = tuple[Mapping[str, str], float]
"""One value, after its labels."""


@dataclass(frozen=True)
class Family:
    """A metric and its points; a counter's name is without `_total`."""

    name: str
    meaning: str
    points: Iterable[Point]
    kind: Literal["gauge", "counter"] = "gauge"


def openmetrics_text(families: Iterable[Family]) -> str:
    """One exposition, ended by # EOF. The last of several points with the same labels is used."""
    lines = [line for family in families for line in _lines(family)]
    return "\n".join([*lines, "# EOF"]) + "\n"


def states(named: Mapping[str, str], label: str, known: Iterable[str], now: str) -> Iterator[Point]:
    """A point for each known state in the label `label`: 1 for the present one, 0 for others."""
    for state in known:
        yield {**named, label: state}, float(state == now)


def labels(named: Mapping[str, str]) -> str:
    """The labels in braces, escaped."""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in named.items()) + "}"


def _lines(family: Family) -> Iterator[str]:
    yield f"# TYPE {family.name} {family.kind}"
    yield f"# HELP {family.name} {family.meaning}"
    suffix = "_total" if family.kind == "counter" else ""
    series = {labels(named) if named else "": value for named, value in family.points}
    for named, value in series.items():
        yield f"{family.name}{suffix}{named} {value!r}"


def _escaped(value: str) -> str:
    return plain(value, _MOST_CHARS).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
