# SPDX-License-Identifier: Apache-2.0
"""The report of `doctor` in each format."""

import json
from typing import Final, get_args

from ipitrace.base.console import PIPE_WIDTH
from ipitrace.base.foreign import plain_values
from ipitrace.doctor import Check, Examination, Status
from ipitrace.render.csv import csv_text
from ipitrace.render.grid import fill
from ipitrace.render.junit import Case, Outcome, Suite, junit_text
from ipitrace.render.openmetrics import Family, openmetrics_text, states
from ipitrace.render.page import MarkdownPage, Table, document

_NAME_WIDTH: Final = 12
_STATUS_WIDTH: Final = 8
_COLUMNS: Final = ("check", "status", "says", "todo")
# Only a failure means that `run` cannot trace, as exit code 3 does.
_OUTCOMES: Final[dict[Status, Outcome]] = {
    "ok": "passed",
    "warn": "skipped",
    "missing": "failure",
    "unknown": "skipped",
}


def render_examination(examination: Examination, width: int = PIPE_WIDTH) -> str:
    """Every check, what to do where there is something to do, and whether `run` can work.

    A check takes one line where the width suffices.
    """
    examination = plain_values(examination)
    lines = [_check(check, width) for check in examination.checks]
    return "\n".join([*lines, fill(_conclusion(examination), width)]) + "\n"


def render_doctor_markdown(examination: Examination) -> str:
    """The same as a table in Markdown."""
    page = MarkdownPage()
    headers = ("status", "check", "what was found", "what to do")
    rows = [(check.status, check.name, check.says, check.todo) for check in examination.checks]
    return document(
        [
            page.heading("ipitrace doctor"),
            page.table("", Table(headers, rows, text=range(len(headers)))),
            page.paragraph(_conclusion(plain_values(examination))),
        ]
    )


def render_doctor_json(examination: Examination) -> str:
    """The same as one JSON document."""
    return json.dumps(examination.to_dict(), indent=2) + "\n"


def render_doctor_csv(examination: Examination) -> str:
    """One row for each check."""
    rows = [(check.name, check.status, check.says, check.todo) for check in examination.checks]
    return csv_text(_COLUMNS, (dict(zip(_COLUMNS, row, strict=True)) for row in rows))


def render_doctor_junit(examination: Examination) -> str:
    """One test case for each check.

    A check fails when it is `missing`. It is skipped when it is `warn` or `unknown`.
    """
    cases = [
        Case(
            check.name,
            _OUTCOMES[check.status],
            f"{check.status}: {check.says}" + (f" > {check.todo}" if check.todo else ""),
        )
        for check in examination.checks
    ]
    suite = Suite("ipitrace.doctor", cases, "", [_conclusion(examination)])
    return junit_text("ipitrace doctor", [suite])


def render_doctor_openmetrics(examination: Examination) -> str:
    """The status of each check, and whether `run` can work, as gauges."""
    points = (
        point
        for check in examination.checks
        for point in states({"check": check.name}, "status", get_args(Status), check.status)
    )
    return openmetrics_text(
        [
            Family("ipitrace_doctor_check", "1 for the status of the check, 0 for others", points),
            Family(
                "ipitrace_doctor_can_run",
                "1 when 'ipitrace run' can trace here",
                [({}, float(examination.can_run))],
            ),
        ]
    )


def _conclusion(examination: Examination) -> str:
    missing = [check.name for check in examination.checks if check.status == "missing"]
    if missing:
        return f"'ipitrace run' cannot trace here: {', '.join(missing)}."
    n_warnings = sum(check.status == "warn" for check in examination.checks)
    plural = "" if n_warnings == 1 else "s"
    about = f", with {n_warnings} warning{plural}" if n_warnings else ""
    return f"'ipitrace run' can work here{about}."


def _check(check: Check, width: int) -> str:
    head = f"{check.status:<{_STATUS_WIDTH}}{check.name:<{_NAME_WIDTH}}"
    text = fill(check.says, width, head)
    return f"{text}\n{fill(check.todo, width, ' ' * len(head) + '> ')}" if check.todo else text
