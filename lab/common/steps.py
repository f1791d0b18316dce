# SPDX-License-Identifier: Apache-2.0
"""Reports each step, its duration, and whether it failed."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


class LabError(Exception):
    """A step failed; the message is for the user."""


def say(text: str) -> None:
    """Print a line for the user on stderr; stdout is for the output of ipitrace."""
    print(f"lab: {text}", file=sys.stderr, flush=True)


@contextmanager
def step(name: str) -> Iterator[None]:
    """Announce a step; print its duration, or raise an error with its name.

    Raises:
        LabError: the error of the body, with the step's name as prefix.
    """
    say(f"{name} ...")
    started_s = time.monotonic()
    try:
        yield
    except (LabError, OSError) as error:
        raise LabError(f"{name}: {error}") from error
    say(f"{name}: {time.monotonic() - started_s:.0f} s")
