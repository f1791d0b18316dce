# SPDX-License-Identifier: Apache-2.0
"""Runs as CSV for change-point detection over their history, in the layout Otava reads.

One row a run: the time, attributes, and a column for each metric of each scenario (Otava's
test definition names `time_column`, `attributes` and `metrics`). Rows of many runs, sorted
by time, are the history.
"""

import csv
import io
import math
from collections.abc import Sequence
from datetime import datetime

import numpy as np

from ipitrace.base.foreign import plain
from ipitrace.compare.model import GateResult
from ipitrace.compare.samples import samples
from ipitrace.compare.wording import gates_in_words
from ipitrace.recording.result import RunResult

# A spreadsheet takes what begins so for a formula, of full width, too, and runs it.
_FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")
_MOST_CHARS = 1000
_ATTRIBUTES = ("run", "kernel", "ipitrace_version", "emulated", "gates")


def render_csv(
    runs: Sequence[tuple[str, RunResult]], gates: Sequence[Sequence[GateResult]] = ()
) -> str:
    """The runs, each with what the person calls it, oldest first.

    Args:
        runs: those of all sides.
        gates: for each run those of the comparison in which it was judged; none of the base's.
    """
    rows = []
    judged = zip(runs, gates or [()] * len(runs), strict=True)
    for (name, run), held in sorted(
        judged, key=lambda pair: datetime.fromisoformat(pair[0][1].started_at)
    ):
        kernel = run.kernel_release or ""
        emulated = run.emulator or ""
        when = datetime.fromisoformat(run.started_at).strftime("%Y-%m-%d %H:%M:%S %z")
        cells = {
            "time": when,
            "run": name,
            "kernel": kernel,
            "ipitrace_version": run.ipitrace_version,
            "emulated": emulated,  # then cycles are not real time
            "gates": gates_in_words(held).removeprefix("Gates: "),
        }
        for row in run.scenarios:
            for metric, sample in samples(row).items():
                cells[f"{row.name}.{metric}"] = f"{np.median(sample.values):.10g}"
        rows.append(cells)
    rows = [{_cell(key): _cell(value) for key, value in row.items()} for row in rows]
    columns = dict.fromkeys(["time", *_ATTRIBUTES, *(column for row in rows for column in row)])
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _cell(text: str) -> str:
    """The text, plain, and text for a spreadsheet, too; a number stays one."""
    text = plain(text, _MOST_CHARS)
    if not text.lstrip().startswith(_FORMULA) or _is_number(text):
        return text
    return f"'{text}"


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
