# SPDX-License-Identifier: Apache-2.0
"""What `run` and `report` print on a terminal: the first screen, or tables."""

from collections.abc import Collection

from ipitrace.base.console import PIPE_WIDTH
from ipitrace.recording.result import RunResult
from ipitrace.render.run.brief import render_brief
from ipitrace.render.run.tables import render_run


def render_screen(
    run: RunResult,
    *,
    sections: Collection[str] = (),
    verbose: bool = False,
    width: int = PIPE_WIDTH,
    unicode: bool = True,
) -> str:
    """The first screen, or tables with `sections` or `verbose`: render_brief(), render_run()."""
    if sections or verbose:
        return render_run(run, sections=sections, verbose=verbose, width=width)
    return render_brief(run, width=width, unicode=unicode)
