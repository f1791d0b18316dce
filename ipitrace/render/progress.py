# SPDX-License-Identifier: Apache-2.0
"""A progress bar for a person who waits: on a terminal, after a second, never in a pipe."""

import sys
import time
from types import TracebackType
from typing import Self, TextIO

from ipitrace.console import redraw

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

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
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
