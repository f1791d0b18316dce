# SPDX-License-Identifier: Apache-2.0
"""Where `watch` shows intervals: the alternate screen of a terminal, or standard output."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.text import Text

from ipitrace.base.console import output_width, say
from ipitrace.base.foreign import plain, plain_lines
from ipitrace.render.watch.text import render_interval
from ipitrace.watch.model import WatchInterval

Show = Callable[[WatchInterval, str], None]
"""Takes an interval, and a line to show below it; "" for no line."""


@contextmanager
def live_screen() -> Iterator[Show | None]:
    """A function that redraws the screen; None where standard output is not a terminal.

    The terminal is restored at the end, also after an error.
    """
    console = Console()
    if not console.is_terminal or console.is_dumb_terminal:
        yield None
        return
    # No refresh thread: the screen is drawn when there is a new interval.
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
    """Print the interval as one block, as wide as the terminal, or for a log."""
    say(render_interval(interval, width=output_width()), end="\n\n")
