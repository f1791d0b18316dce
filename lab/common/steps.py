# SPDX-License-Identifier: Apache-2.0
"""Saying what is done, how long it took, and which step failed."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


class LabError(Exception):
    """A step failed, for a reason that the user is told."""


def say(text: str) -> None:
    """A line for the user, on stderr: stdout is for what ipitrace printed inside."""
    print(f"lab: {text}", file=sys.stderr, flush=True)


@contextmanager
def step(name: str) -> Iterator[None]:
    """Announce a step; say how long it took, or that it was the one that failed.

    Raises:
        LabError: what the body raised, with the step's name before it.
    """
    say(f"{name} ...")
    started_s = time.monotonic()
    try:
        yield
    except (LabError, OSError) as error:
        raise LabError(f"{name}: {error}") from error
    say(f"{name}: {time.monotonic() - started_s:.0f} s")
