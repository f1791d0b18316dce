# SPDX-License-Identifier: Apache-2.0
"""What is done with a recording that anybody may have written."""

import contextlib
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from ipitrace.base.errors import IpitraceError, UsageError
from ipitrace.compare import Settings, compare
from ipitrace.compare.reading import read
from ipitrace.recording.reader import computing_with, read_run, read_run_text
from ipitrace.recording.writer import CHECKSUM_FILE, RUN_FILE
from ipitrace.render.compare.csv import render_csv
from ipitrace.render.compare.junit import render_junit
from ipitrace.render.compare.openmetrics import render_openmetrics
from ipitrace.render.compare.tables import render_comparison
from ipitrace.render.formats import RUN

from .files import folder, one_sentence, place

_RECORDING = Path(__file__).parents[1] / "data/recordings/micro-pvm"


@functools.cache
def _example_text() -> str:
    return (_RECORDING / RUN_FILE).read_text()


def example() -> Any:
    """A run.json as plain values: a real one, with one scenario and two repetitions of it."""
    run = json.loads(_example_text())
    run["scenarios"] = run["scenarios"][:1]
    figures = run["scenarios"][0]["repetition_figures"]
    run["scenarios"][0]["repetition_figures"] = figures[:6]
    return run


@functools.cache
def _good() -> Any:
    return read(place("good/run.json", json.dumps(example()).encode()))


def read_and_use(data: bytes) -> None:
    """All that `report`, `compare` and `ab` do with run.json."""
    recording = folder() / "r"
    path = place(f"r/{RUN_FILE}", data)
    place(f"r/{CHECKSUM_FILE}", f"{hashlib.sha256(data).hexdigest()}  {RUN_FILE}\n".encode())
    with contextlib.suppress(UsageError), one_sentence():
        run = read_run(recording)
        read_run_text(recording)
        for style in RUN.formats:
            with contextlib.suppress(UsageError), computing_with(recording):
                RUN.render(style, run, verbose=True).encode()
    with contextlib.suppress(IpitraceError), one_sentence():
        run = read(path)
        for base in (_good(), run):
            _compare(base, run)


def _compare(base: Any, run: Any) -> None:
    comparison = compare([("a", base)], [("b", run)], ("a", "b"), Settings())
    for text in (
        render_comparison(comparison, every=True, markdown=False),
        render_comparison(comparison, every=True, markdown=True),
        render_junit([comparison], strict=True),
        render_openmetrics([comparison]),
        render_csv([("a", base), ("b", run)]),
    ):
        text.encode()
