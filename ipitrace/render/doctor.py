# SPDX-License-Identifier: Apache-2.0
"""The doctor's report as text: one line a check where the width suffices."""

from typing import Final

from ipitrace.base.console import PIPE_WIDTH
from ipitrace.base.foreign import plain_values
from ipitrace.doctor import Check, Examination
from ipitrace.render.grid import fill

_NAME_WIDTH: Final = 12
_STATUS_WIDTH: Final = 8


def render_examination(examination: Examination, width: int = PIPE_WIDTH) -> str:
    """Every check, what to do where there is something to do, and whether `run` can work."""
    examination = plain_values(examination)
    lines = [_check(check, width) for check in examination.checks]
    missing = [check.name for check in examination.checks if check.status == "missing"]
    if missing:
        lines.append(fill(f"'ipitrace run' cannot trace here: {', '.join(missing)}.", width))
    else:
        n_warnings = sum(check.status == "warn" for check in examination.checks)
        plural = "" if n_warnings == 1 else "s"
        about = f", with {n_warnings} warning{plural}" if n_warnings else ""
        lines.append(f"'ipitrace run' can work here{about}.")
    return "\n".join(lines) + "\n"


def _check(check: Check, width: int) -> str:
    head = f"{check.status:<{_STATUS_WIDTH}}{check.name:<{_NAME_WIDTH}}"
    text = fill(check.says, width, head)
    return f"{text}\n{fill(check.todo, width, ' ' * len(head) + '> ')}" if check.todo else text
