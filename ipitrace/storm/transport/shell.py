# SPDX-License-Identifier: Apache-2.0
"""The interface of all transports: run a program in the guest as root."""

from collections.abc import Callable, Sequence
from typing import Final, Protocol

from ipitrace.host.child import TICK_S, Finished, timed_out
from ipitrace.storm import limits

__all__ = ["QUICK_S", "TICK_S", "Finished", "Shell", "nothing", "timed_out"]

QUICK_S: Final = 30.0
"""Enough for everything but a storm or a build, also on a busy guest under emulation."""


def nothing() -> None:
    """The default tick: does nothing."""


class Shell(Protocol):
    """A transport to one guest."""

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
        tick: Callable[[], float | None] = nothing,
    ) -> Finished:
        """Run `command` in the guest as root and wait for its end.

        Args:
            command: the program and its arguments.
            stdin: its complete standard input.
            timeout_s: the limit for the complete run.
            limit_bytes: the limit of its output, and of the memory used for it.
            tick: is called repeatedly; returns the seconds until the next call, or None for
                20 ms. If it raises, the command is ended.

        Raises:
            HostError: the guest cannot be reached any more, or the command took longer
                than `timeout_s` or printed more than its limit. It was ended then, if
                possible.
        """
