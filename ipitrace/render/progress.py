# SPDX-License-Identifier: Apache-2.0
"""What a person who waits is told: a bar, on a terminal alone; or steps, in a pipe as well."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Self, TextIO

from ipitrace.base.console import (
    redraw,
    tell,
)

_DELAY_S = 1.0
_WIDTH = 30


class ProgressBar:
    """Draws on standard error; a context manager that leaves nothing behind."""

    def __init__(self, *, enabled: bool = True, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._enabled = enabled and self._stream.isatty()
        self._from_s = time.monotonic() + _DELAY_S
        self._drawn = ""

    @property
    def enabled(self) -> bool:
        """Whether there is a terminal to draw on."""
        return self._enabled

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.clear()

    def clear(self) -> None:
        """Take the bar away, for a line of text or for good."""
        if self._drawn:
            redraw("", self._stream)
        self._drawn = ""

    def show(self, what: str, share: float) -> None:
        """Say that `share` (0..1) of the work is done and `what` is being done now."""
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
    """Says on standard error what is being done: a line a step.

    On a terminal it is one line, which is gone at the step's end, and counts the seconds.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream

    @contextlib.contextmanager
    def step(self, what: str) -> Iterator[Callable[[], None]]:
        """Inside, `what` is being done; the answer is to be called every now and then meanwhile."""
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
