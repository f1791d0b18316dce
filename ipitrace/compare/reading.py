# SPDX-License-Identifier: Apache-2.0
"""Runs to compare: from recordings, from run.json alone, from directories of recordings."""

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from ipitrace.compare.fingerprint import Named
from ipitrace.errors import UsageError
from ipitrace.recording import RUN_FILE, read_run
from ipitrace.result import SCHEMA_VERSION, RunResult

_MOST = 1 << 64  # and no NaN is less


def read(path: Path) -> RunResult:
    """The run of a recording, or of a run.json without the rest.

    Raises:
        UsageError: it is neither, damaged, or newer than this program.
    """
    if path.is_dir() or not path.exists():
        return _checked(path, read_run(path))
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
        return _checked(path, RunResult.from_dict(data))
    except ValueError as error:
        raise UsageError(f"The file {path} is not a run.json: {error}.", hint) from error


def _checked(path: Path, run: RunResult) -> RunResult:
    """The run, whose types are right, if its values can be calculated with, too.

    Raises:
        UsageError: they cannot.
    """
    names = [row.name for row in run.scenarios]
    doubt = None
    if len(set(names)) < len(names):
        doubt = "it has a scenario twice"
    elif not _is_time(run.started_at):
        doubt = "its started_at is no time"
    elif not all(abs(number) < _MOST for number in _numbers(run.to_dict()["scenarios"])):
        doubt = "it has a number that cannot be"
    if doubt:
        raise UsageError(f"{path} is damaged: {doubt}.", "Copy it again, or measure again.")
    return run


def _is_time(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


def _numbers(value: object) -> Iterator[float]:
    """Every number in nested dictionaries and sequences."""
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, dict):
        yield from _numbers([*value.values()])
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _numbers(one)


def read_side(path: Path) -> tuple[Named, ...]:
    """One side of a comparison: a recording, a run.json, or a directory of recordings.

    Raises:
        UsageError: it is none of these, or one of them cannot be read.
    """
    if path.is_dir() and not (path / RUN_FILE).exists():
        found = sorted(p.parent for p in path.glob(f"[!.]*/{RUN_FILE}"))
        if found:
            return tuple((str(place), read(place)) for place in found)
    return ((str(path), read(path)),)
