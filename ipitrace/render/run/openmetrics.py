# SPDX-License-Identifier: Apache-2.0
"""A run as OpenMetrics text: a gauge for each figure."""

from collections.abc import Iterator
from datetime import datetime
from typing import Final

from ipitrace.recording.result import RunResult
from ipitrace.render.openmetrics import Family, Point, openmetrics_text, states
from ipitrace.render.run.figures import figures_of
from ipitrace.words.scenarios import ScenarioStatus

_FIGURES: Final = {
    "sends": ("sends", "sent: sends made; incomplete: those not acknowledged in time"),
    "deliveries": (
        "deliveries",
        "delivered: handler entries; coalesced: deliveries that no handler saw",
    ),
    "cycles": (
        "cycles",
        "TSC cycles: send (S), deliver (D), last_deliver (D of the last target), round_trip (R)",
    ),
    "exits": ("exits_per_ipi", "VM exits, the sender's per send and the targets' per delivery"),
    "path": ("path_share", "share of the IPIs that took the path"),
}
"""For each family of figures the name of its metric, and what that means."""


def render_openmetrics(run: RunResult) -> str:
    """One exposition, ended by # EOF."""
    fingerprint = run.host.fingerprint
    about = {
        "kernel": (fingerprint and fingerprint.kernel_release) or "",
        "ipitrace_version": run.ipitrace_version,
    }
    started = datetime.fromisoformat(run.started_at).timestamp()
    own = (
        Family(
            "ipitrace_run_start_time_seconds",
            "when the run started, in seconds since 1970",
            [(about, started)],
        ),
        Family(
            "ipitrace_run_complete",
            "1 when every scenario asked for was finished",
            [({}, float(run.complete))],
        ),
        Family(
            "ipitrace_run_trustworthy",
            "0 when something was found that makes the numbers worthless",
            [({}, float(not run.untrustworthy))],
        ),
        Family(
            "ipitrace_run_emulated",
            "1 where the host or the guest is emulated: cycles are not real time",
            [({}, float(bool(run.emulator)))],
        ),
        Family(
            "ipitrace_run_tsc_hertz",
            "rate of the TSC, to convert cycles to time",
            [({}, run.clock.tsc_hz)] if run.clock.tsc_hz else [],
        ),
        Family(
            "ipitrace_run_status",
            "1 for the status of the scenario, 0 for the others",
            _statuses(run),
        ),
    )
    figures = (
        Family(f"ipitrace_run_{name}", meaning, _points(run, family))
        for family, (name, meaning) in _FIGURES.items()
    )
    return openmetrics_text([*own, *figures])


def _statuses(run: RunResult) -> Iterator[Point]:
    for row in run.scenarios:
        yield from states({"scenario": row.name}, "status", list(ScenarioStatus), row.status)


def _points(run: RunResult, family: str) -> Iterator[Point]:
    for row in run.scenarios:
        for figure in figures_of(row):
            if figure.family == family:
                yield {"scenario": row.name, **dict(figure.part)}, float(figure.value)
