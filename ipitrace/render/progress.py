# SPDX-License-Identifier: Apache-2.0
"""Progress on standard error: a bar on a terminal, or steps, which a pipe gets as well."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Self, TextIO

from ipitrace.base.console import redraw, tell

_DELAY_S = 1.0
_WIDTH = 30


class ProgressBar:
    """A progress bar on standard error; as a context manager it erases the bar at the end."""

    def __init__(self, *, enabled: bool = True, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._enabled = enabled and self._stream.isatty()
        self._from_s = time.monotonic() + _DELAY_S
        self._drawn = ""

    @property
    def enabled(self) -> bool:
        """Whether standard error is a terminal."""
        return self._enabled

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.clear()

    def clear(self) -> None:
        """Erase the bar."""
        if self._drawn:
            redraw("", self._stream)
        self._drawn = ""

    def show(self, what: str, share: float) -> None:
        """Show that `share` (0..1) of the work is done, and `what` is being done now."""
        if not self._enabled or time.monotonic() < self._from_s:
            return
        share = min(max(share, 0.0), 1.0)
        filled = round(_WIDTH * share)
        bar = "#" * filled + "." * (_WIDTH - filled)
        line = f"[{bar}] {share:4.0%} {what}"
        if line != self._drawn:
            redraw(line, self._stream)
        self._drawn = line


class Steps:
    """Prints on standard error what is being done: one line for each step.

    On a terminal the line counts the seconds, and is erased when the step ends.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream

    @contextlib.contextmanager
    def step(self, what: str) -> Iterator[Callable[[], None]]:
        """A context in which `what` is being done; call the result regularly to update the line."""
        if not self._stream.isatty():
            tell(what)
            yield lambda: None
            return
        began_s = time.monotonic()
        shown_s = -1

        def tick() -> None:
            nonlocal shown_s
            elapsed_s = int(time.monotonic() - began_s)
            if elapsed_s > shown_s:
                shown_s = elapsed_s
                redraw(f"{what}, {elapsed_s} s", self._stream)

        tick()
        try:
            yield tick
        finally:
            redraw("", self._stream)
