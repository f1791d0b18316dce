# SPDX-License-Identifier: Apache-2.0
"""A run as CSV in long form: one row for each scenario and metric."""

from collections.abc import Iterator

from ipitrace.recording.result import RunResult
from ipitrace.render.csv import csv_text
from ipitrace.render.run.figures import figures_of
from ipitrace.words.scenarios import ScenarioStatus

_COLUMNS = ("scenario", "status", "metric", "value", "unit", "emulated", "problem")


def render_csv(run: RunResult) -> str:
    """All figures of the run. A scenario that was not measured has one row without a metric.

    The column `problem` says why a scenario was not measured, or why the run must not be
    trusted; it is empty in a good run.
    """
    return csv_text(_COLUMNS, _rows(run))


def _rows(run: RunResult) -> Iterator[dict[str, str]]:
    doubts = "; ".join([*([run.failure] if run.failure else []), *run.untrustworthy])
    for row in run.scenarios:
        shared = {"scenario": row.name, "status": row.status, "emulated": run.emulator or ""}
        if row.status != ScenarioStatus.MEASURED:
            yield {**shared, "problem": row.reason or ""}
        for figure in figures_of(row):
            yield {
                **shared,
                "metric": figure.metric,
                "value": f"{figure.value:.10g}",
                "unit": figure.unit,
                "problem": doubts,
            }
