# SPDX-License-Identifier: Apache-2.0
"""What every way into a guest can do: run a program there, as root."""

from collections.abc import Callable, Sequence
from typing import Final, Protocol

from ipitrace.host.child import (
    TICK_S,
    Finished,
    timed_out,
)
from ipitrace.storm import limits

__all__ = ["QUICK_S", "TICK_S", "Finished", "Shell", "nothing", "timed_out"]

QUICK_S: Final = 30.0
"""Enough for anything but a storm or a build, on a busy guest under emulation, too."""


def nothing() -> None:
    """Is called meanwhile unless something else is."""


class Shell(Protocol):
    """One way into one guest."""

    @property
    def via(self) -> str:
        """`ssh`, `qga`, `qga+libvirt` or `local`."""

    def run(
        self,
        command: Sequence[str],
        *,
        stdin: bytes = b"",
        timeout_s: float = QUICK_S,
        limit_bytes: int = limits.TEXT_BYTES,
        tick: Callable[[], None] = nothing,
    ) -> Finished:
        """Run `command` in the guest as root and wait for its end.

        Args:
            command: it and its arguments.
            stdin: what it is given to read.
            timeout_s: for all of it, whatever the guest says meanwhile.
            limit_bytes: the most that it may print; never more memory is taken for it.
            tick: is called every 20 ms or so. When it raises, the command is ended.

        Raises:
            HostError: the guest cannot be reached any more, or the command took longer
                than `timeout_s` or printed more than it may; it was ended then as far as
                that was possible.
        """
