# SPDX-License-Identifier: Apache-2.0
"""Reads runs to compare: recordings, single run.json files, directories of recordings."""

import os
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from ipitrace.base.errors import UsageError
from ipitrace.base.units import MIB
from ipitrace.compare.fingerprint import Named
from ipitrace.recording.reader import read_run, recording_of
from ipitrace.recording.result import RunResult
from ipitrace.recording.row import ScenarioResult
from ipitrace.recording.writer import MOST_RUN_BYTES, RUN_FILE

_MOST_REPETITIONS = 2000  # every value of one side is compared with every value of the other
_MOST_ENTRIES = 10_000


def read(path: Path) -> RunResult:
    """The run of a recording, or of a run.json without the other files.

    `started_at` is converted to UTC in one form: the texts then sort in order of time.

    Raises:
        UsageError: the path is neither, is damaged, or was written by a newer ipitrace.
    """
    return _checked(path, read_run(path))


def _checked(path: Path, run: RunResult) -> RunResult:
    """Check the values of a run whose types are correct.

    Raises:
        UsageError: a value cannot be used.
    """
    names = [row.name for row in run.scenarios]
    started_at = _in_utc(run.started_at)
    doubt = None
    if len(set(names)) < len(names):
        doubt = "it contains a scenario twice"
    elif started_at is None:
        doubt = "its started_at is not a time"
    elif any(_most_of_a_mode(row) > _MOST_REPETITIONS for row in run.scenarios):
        doubt = f"it has more than {_MOST_REPETITIONS} repetitions of a scenario"
    if doubt or started_at is None:
        raise UsageError(
            f"{path} is damaged: {doubt}.", "Copy the recording again, or measure again."
        )
    return replace(run, started_at=started_at)


def _most_of_a_mode(row: ScenarioResult) -> int:
    return max(Counter(figures.mode for figures in row.repetition_figures).values(), default=0)


def _in_utc(text: str) -> str | None:
    """The same time as text, in UTC; None if the text is not a time with an offset from UTC."""
    try:
        time = datetime.fromisoformat(text)
        return None if time.tzinfo is None else time.astimezone(UTC).isoformat()
    except (ValueError, OverflowError):  # a year before 1 or after 9999
        return None


def read_side(path: Path) -> tuple[Named, ...]:
    """One side of a comparison: a recording, a run.json, or a directory of recordings.

    Raises:
        UsageError: the path is none of these, or a recording cannot be read.
    """
    recording_of(path)  # raises an error if the path may not be accessed
    if path.is_dir() and not (path / RUN_FILE).exists():
        found = _recordings_in(path)
        if found:
            return tuple((str(place), read(place)) for place in found)
    return ((str(path), read(path)),)


def _recordings_in(path: Path) -> list[Path]:
    """The recordings that are not hidden, sorted.

    Raises:
        UsageError: the directory cannot be listed, or contains too much.
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
                        f"{path} is too large: it has more than {_MOST_ENTRIES} entries, or the "
                        f"{RUN_FILE} files exceed {MOST_RUN_BYTES // MIB} MiB in total.",
                        "Use a directory with fewer recordings.",
                    )
    except OSError as error:
        raise UsageError(
            f"{path} cannot be listed: {error.strerror}.", "Check the permissions of the directory."
        ) from error
    return sorted(found)
