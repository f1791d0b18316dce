# SPDX-License-Identifier: Apache-2.0
"""The doctor's report as text: one line a check where 80 columns suffice."""

import textwrap
from typing import Final

from ipitrace.doctor import Check, Examination
from ipitrace.foreign import plain_values

_WIDTH: Final = 80
_NAME_WIDTH: Final = 12
_STATUS_WIDTH: Final = 8


def render_examination(examination: Examination) -> str:
    """Every check, what to do where there is something to do, and whether `run` can work."""
    examination = plain_values(examination)
    lines = [_check(check) for check in examination.checks]
    missing = [check.name for check in examination.checks if check.status == "missing"]
    if missing:
        lines.append(f"'ipitrace run' cannot trace here: {', '.join(missing)}.")
    else:
        n_warnings = sum(check.status == "warn" for check in examination.checks)
        plural = "" if n_warnings == 1 else "s"
        about = f", with {n_warnings} warning{plural}" if n_warnings else ""
        lines.append(f"'ipitrace run' can work here{about}.")
    return "\n".join(lines) + "\n"


def _check(check: Check) -> str:
    head = f"{check.status:<{_STATUS_WIDTH}}{check.name:<{_NAME_WIDTH}}"
    indent = " " * len(head)
    text = textwrap.fill(
        check.says,
        _WIDTH,
        initial_indent=head,
        subsequent_indent=indent,
        break_on_hyphens=False,  # of what others named, nothing else may be left to break at
    )
    if not check.todo:
        return text
    todo = textwrap.fill(
        check.todo,
        _WIDTH,
        initial_indent=f"{indent}> ",
        subsequent_indent=f"{indent}  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return f"{text}\n{todo}"
