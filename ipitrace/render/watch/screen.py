# SPDX-License-Identifier: Apache-2.0
"""Where `watch` shows its intervals: a terminal's alternate screen, or standard output."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.text import Text

from ipitrace.base.console import (
    output_width,
    say,
)
from ipitrace.base.foreign import (
    plain,
    plain_lines,
)
from ipitrace.render.watch.text import render_interval
from ipitrace.watch.model import WatchInterval

Show = Callable[[WatchInterval, str], None]
"""Gets an interval, and a line to show below it if that is not empty."""


@contextmanager
def live_screen() -> Iterator[Show | None]:
    """What redraws the screen; None where standard output is no terminal to draw on.

    The terminal is as it was when this ends, however it ends.
    """
    console = Console()
    if not console.is_terminal or console.is_dumb_terminal:
        yield None
        return
    # No refresh thread: we draw when there is something new.
    with Live(console=console, screen=True, auto_refresh=False) as live:

        def show(interval: WatchInterval, note: str) -> None:
            width, height = console.size
            text = render_interval(interval, width=width, height=height - bool(note))
            if note:
                text += f"\n{plain(note)}"
            live.update(Text(plain_lines(text), no_wrap=True), refresh=True)

        live.update(Text("ipitrace watch: counting"), refresh=True)
        yield show


def print_block(interval: WatchInterval) -> None:
    """The interval as a block of its own: as wide as the terminal, or for a log."""
    say(render_interval(interval, width=output_width()), end="\n\n")
