# SPDX-License-Identifier: Apache-2.0
"""A benchmark's result: a Markdown table to read, and pyperf's JSON to compare."""

import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyperf
from tabulate import tabulate

CYCLES, SECONDS, PER_SECOND = "cycles", "seconds", "per second"
_FEW = 10
_PYPERF_UNITS = {SECONDS: "second"}


@dataclass(frozen=True)
class Series:
    """One quantity, measured once per repetition.

    Attributes:
        name: its name in the JSON.
        unit: CYCLES, SECONDS or PER_SECOND.
        values: above 0, in the order of measurement.
    """

    name: str
    unit: str
    values: Sequence[float]


@dataclass(frozen=True)
class Report:
    """One benchmark's table, its notes, and the values of the table."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    notes: Sequence[str] = ()
    series: Sequence[Series] = field(default_factory=list)

    def markdown(self) -> str:
        """The table with its title and notes."""
        table = tabulate(
            self.rows, self.columns, tablefmt="github", disable_numparse=True, stralign="left"
        )
        notes = "".join(f"- {note}\n" for note in self.notes)
        return f"### {self.title}\n\n{table}\n\n{notes}"


def spread(values: Iterable[float], digits: int = 2) -> str:
    """Median and, in parentheses, the middle half; the minimum and maximum of fewer than ten."""
    found = np.array(list(values))
    low, high = (0, 100) if len(found) < _FEW else (25, 75)
    low_text, median, high_text = (
        f"{value:,.{digits}f}" for value in np.percentile(found, [low, 50, high])
    )
    return f"{median} ({low_text} to {high_text})"


def write_json(reports: Iterable[Report], path: Path) -> None:
    """Write every series; `python -m pyperf compare_to` reads two such files."""
    host = {"hostname": platform.node(), "platform": platform.platform()}
    benchmarks = []
    for report in reports:
        for series in report.series:
            metadata = {
                **host,
                "name": series.name,
                "unit": _PYPERF_UNITS.get(series.unit, "integer"),
                "description": f"{report.title}, {series.unit}",
            }
            runs = [
                pyperf.Run([value], metadata=metadata, collect_metadata=False)
                for value in series.values
                if value > 0  # pyperf supports no others; a rate of 0 is in the table
            ]
            if runs:
                benchmarks.append(pyperf.Benchmark(runs))
    path.parent.mkdir(parents=True, exist_ok=True)
    pyperf.BenchmarkSuite(benchmarks).dump(str(path), replace=True)
