# SPDX-License-Identifier: Apache-2.0
"""A run as JUnit XML: one test case for each scenario."""

from collections.abc import Iterator

from ipitrace.recording.result import RunResult
from ipitrace.recording.row import ScenarioResult
from ipitrace.render.junit import Case, Suite, junit_text
from ipitrace.words.scenarios import ScenarioStatus

_SUITE = "ipitrace.run"


def render_junit(run: RunResult) -> str:
    """A scenario that cannot run on the guest is skipped.

    All measured scenarios fail when the run must not be trusted. When the run ended early, a
    test case `complete` fails: run.json does not name the scenarios that were not reached.
    """
    about = [
        run.host.one_line,
        f"ipitrace {run.ipitrace_version}, started {run.started_at}",
    ]
    if run.emulator:
        about.append("emulated: cycles are not real time")
    return junit_text("ipitrace run", [Suite(_SUITE, list(_cases(run)), run.started_at, about)])


def _cases(run: RunResult) -> Iterator[Case]:
    doubts = "; ".join(run.untrustworthy)
    for row in run.scenarios:
        yield _case(row, doubts)
    if not run.complete:
        yield Case("complete", "failure", f"the run is partial: {run.failure}")


def _case(row: ScenarioResult, doubts: str) -> Case:
    if row.status != ScenarioStatus.MEASURED:
        return Case(row.name, "skipped", row.reason or "")
    if doubts:
        return Case(row.name, "failure", f"the numbers are not trustworthy: {doubts}")
    return Case(row.name)
