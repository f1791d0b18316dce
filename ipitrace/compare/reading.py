# SPDX-License-Identifier: Apache-2.0
"""Runs to compare: from recordings, from run.json alone, from directories of recordings."""

import os
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from ipitrace.base.errors import UsageError
from ipitrace.base.units import MIB
from ipitrace.compare.fingerprint import Named
from ipitrace.recording.reader import (
    read_run,
    recording_of,
)
from ipitrace.recording.result import RunResult
from ipitrace.recording.row import ScenarioResult
from ipitrace.recording.writer import (
    MOST_RUN_BYTES,
    RUN_FILE,
)

_MOST_REPETITIONS = 2000  # every value of one side is held against every one of the other
_MOST_ENTRIES = 10_000


def read(path: Path) -> RunResult:
    """The run of a recording, or of a run.json without the rest.

    Its `started_at` is in UTC and in one form, so that these texts sort as their times do.

    Raises:
        UsageError: it is neither, damaged, or newer than this program.
    """
    return _checked(path, read_run(path))


def _checked(path: Path, run: RunResult) -> RunResult:
    """The run, whose types are right, if its values can be calculated with, too.

    Raises:
        UsageError: they cannot.
    """
    names = [row.name for row in run.scenarios]
    started_at = _in_utc(run.started_at)
    doubt = None
    if len(set(names)) < len(names):
        doubt = "it has a scenario twice"
    elif started_at is None:
        doubt = "its started_at is no time"
    elif any(_most_of_a_mode(row) > _MOST_REPETITIONS for row in run.scenarios):
        doubt = f"it has more than {_MOST_REPETITIONS} repetitions of a scenario"
    if doubt or started_at is None:
        raise UsageError(f"{path} is damaged: {doubt}.", "Copy it again, or measure again.")
    return replace(run, started_at=started_at)


def _most_of_a_mode(row: ScenarioResult) -> int:
    return max(Counter(figures.mode for figures in row.repetition_figures).values(), default=0)


def _in_utc(text: str) -> str | None:
    """The same time as text, in UTC; None if it is not a time with an offset from UTC."""
    try:
        time = datetime.fromisoformat(text)
        return None if time.tzinfo is None else time.astimezone(UTC).isoformat()
    except (ValueError, OverflowError):  # a year before 1 or after 9999
        return None


def read_side(path: Path) -> tuple[Named, ...]:
    """One side of a comparison: a recording, a run.json, or a directory of recordings.

    Raises:
        UsageError: it is none of these, or one of them cannot be read.
    """
    recording_of(path)  # which says so if it may not be looked at
    if path.is_dir() and not (path / RUN_FILE).exists():
        found = _recordings_in(path)
        if found:
            return tuple((str(place), read(place)) for place in found)
    return ((str(path), read(path)),)


def _recordings_in(path: Path) -> list[Path]:
    """Those that are not hidden, sorted.

    Raises:
        UsageError: it cannot be listed, or holds more than any series of recordings.
    """
    found: list[Path] = []
    size = 0
    try:
        with os.scandir(path) as entries:
            for n, entry in enumerate(entries):
                run = Path(entry.path, RUN_FILE)
                if not entry.name.startswith(".") and run.exists():
                    found.append(run.parent)
                    size += run.stat().st_size
                if n >= _MOST_ENTRIES or size > MOST_RUN_BYTES:
                    raise UsageError(
                        f"{path} holds too much: more than {_MOST_ENTRIES} files, or recordings "
                        f"whose {RUN_FILE} have more than {MOST_RUN_BYTES // MIB} MiB together.",
                        "Give a directory of fewer recordings.",
                    )
    except OSError as error:
        raise UsageError(
            f"{path} cannot be listed: {error.strerror}.", "See that it may be read."
        ) from error
    return sorted(found)
