# SPDX-License-Identifier: Apache-2.0
"""Runs to compare: from recordings, from run.json alone, and several taken as one."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ipitrace.compare.fingerprint import check_comparable
from ipitrace.errors import UsageError
from ipitrace.recording import read_run
from ipitrace.result import SCHEMA_VERSION, RunResult, ScenarioResult


def read(path: Path) -> RunResult:
    """The run of a recording, or of a run.json without the rest.

    Raises:
        UsageError: it is neither, damaged, or newer than this program.
    """
    if path.is_dir() or not path.exists():
        return read_run(path)
    hint = "Give a recording's directory, or a run.json that 'ipitrace run' wrote."
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        version = data["schema_version"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise UsageError(f"The file {path} is not a run.json.", hint) from error
    if type(version) is not int or version > SCHEMA_VERSION:
        raise UsageError(
            f"The file {path} is of format {version}; this ipitrace reads {SCHEMA_VERSION}.", hint
        )
    try:
        return RunResult.from_dict(data)
    except ValueError as error:
        raise UsageError(f"The file {path} is not a run.json: {error}.", hint) from error


def pool(runs: Sequence[RunResult], name: str, allow: frozenset[str]) -> RunResult:
    """Several runs of one configuration as one: all their repetitions, in the order run.

    Raises:
        HostError, MeasurementError: they are not alike, or one cannot be trusted.
    """
    first = runs[0]
    for i, run in enumerate(runs):
        check_comparable(first, run, (f"{name}, run 1", f"{name}, run {i + 1}"), allow)
    rows = tuple(
        _pooled([row for run in runs for row in run.scenarios if row.name == first_row.name])
        for first_row in first.scenarios
    )
    return replace(first, scenarios=rows)


def _pooled(rows: Sequence[ScenarioResult]) -> ScenarioResult:
    figures = tuple(figure for row in rows for figure in row.repetition_figures)
    return replace(rows[0], repetition_figures=figures)
