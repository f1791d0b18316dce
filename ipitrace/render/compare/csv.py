# SPDX-License-Identifier: Apache-2.0
"""Runs as CSV for change-point detection over a history of runs, in the layout of Otava.

Each run is one row: the time, attributes, and a column for each metric of each scenario
(Otava's test definition has `time_column`, `attributes` and `metrics`). The history is the rows
of many runs, sorted by time.
"""

from collections.abc import Sequence
from datetime import datetime

import numpy as np

from ipitrace.compare.model import GateResult
from ipitrace.compare.samples import samples
from ipitrace.compare.wording import gates_in_words
from ipitrace.recording.result import RunResult
from ipitrace.render.csv import csv_text

_ATTRIBUTES = ("run", "kernel", "ipitrace_version", "emulated", "gates")


def render_csv(
    runs: Sequence[tuple[str, RunResult]], gates: Sequence[Sequence[GateResult]] = ()
) -> str:
    """The runs, oldest first.

    Args:
        runs: the runs of all sides, each after its name.
        gates: for each run, the gates of the comparison that judged it; the base has none.
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
            "emulated": emulated,  # its cycles are not real time
            "gates": gates_in_words(held).removeprefix("Gates: "),
        }
        for row in run.scenarios:
            for metric, sample in samples(row).items():
                cells[f"{row.name}.{metric}"] = f"{np.median(sample.values):.10g}"
        rows.append(cells)
    columns = dict.fromkeys(["time", *_ATTRIBUTES, *(column for row in rows for column in row)])
    return csv_text(list(columns), rows)
