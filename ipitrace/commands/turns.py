# SPDX-License-Identifier: Apache-2.0
"""Progress of `ipitrace ab`: a bar on a terminal, otherwise one line for each round."""

import time
from typing import Self

from ipitrace.base.console import tell
from ipitrace.base.units import spell_time
from ipitrace.render.progress import ProgressBar

_SIDES = 2


class Turns:
    """Prints on standard error; as a context manager it erases the bar at the end."""

    def __init__(self, rounds: int) -> None:
        self._rounds = rounds
        self._done = 0
        self._from_s = time.monotonic()
        self._bar = ProgressBar()
        self._now = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._bar.clear()

    def starts(self, number: int, side: str) -> None:
        """Note that side `a` or `b` is now measured in round `number`, counted from 1."""
        self._now = f"round {number} of {self._rounds}, {side.upper()}{self._time_left()}"

    def goes_on(self) -> None:
        """Update the bar; nothing is written unless the text changed."""
        self._bar.show(self._now, self._done / (self._rounds * _SIDES))

    def ended(self, number: int) -> None:
        """Note that one side of round `number` is measured."""
        self._done += 1
        self._bar.clear()
        if not self._bar.enabled and self._done == number * _SIDES:
            tell(f"ipitrace: round {number} of {self._rounds} is measured{self._time_left()}")

    def says(self, text: str) -> None:
        """Print a line in place of the bar."""
        self._bar.clear()
        tell(text)

    def _time_left(self) -> str:
        """Estimated from the sides measured so far; "" before the first and after the last."""
        left = self._rounds * _SIDES - self._done
        if not self._done or not left:
            return ""
        each_s = (time.monotonic() - self._from_s) / self._done
        return f", about {spell_time(each_s * left)} left"
