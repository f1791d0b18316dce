# SPDX-License-Identifier: Apache-2.0
"""No way into a guest: ipitrace runs inside of it, or on bare metal."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence

from ipitrace.errors import HostError
from ipitrace.storm.limits import TEXT_BYTES
from ipitrace.storm.shell import QUICK_S, Finished, Shell, run_here


class LocalShell:
    """Runs programs on this machine."""

    via = "local"

    def run(
        self,
        command: Sequence[str],
        *,
        stdin: bytes = b"",
        timeout_s: float = QUICK_S,
        tick: Callable[[], None] = lambda: None,
        limit_bytes: int = TEXT_BYTES,  # noqa: ARG002 - this machine's own programs
    ) -> Finished:
        """As Shell.run."""
        return run_here(command, stdin=stdin, timeout_s=timeout_s, tick=tick)


@contextlib.contextmanager
def open_local() -> Iterator[Shell]:
    """Be the shell of this machine.

    Raises:
        HostError: we are not root.
    """
    if os.geteuid() != 0:
        raise HostError("A storm on this machine itself needs root.", "Run it with sudo.")
    yield LocalShell()
