# SPDX-License-Identifier: Apache-2.0
"""The transport `local`: ipitrace runs inside the guest, or on bare metal."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence

from ipitrace.base.errors import HostError
from ipitrace.host.child import run_bounded
from ipitrace.storm import limits
from ipitrace.storm.transport.shell import QUICK_S, Finished, Shell, nothing


class LocalShell:
    """Runs programs on this machine."""

    via = "local"

    def run(
        self,
        command: Sequence[str],
        *,
        stdin: bytes = b"",
        timeout_s: float = QUICK_S,
        limit_bytes: int = limits.TEXT_BYTES,
        tick: Callable[[], float | None] = nothing,
    ) -> Finished:
        """As Shell.run."""
        return run_bounded(
            command,
            stdin=stdin,
            timeout_s=timeout_s,
            limit_bytes=limit_bytes,
            stderr_limit_bytes=limits.STDERR_BYTES,
            tick=tick,
        )


@contextlib.contextmanager
def open_local() -> Iterator[Shell]:
    """The shell of this machine.

    Raises:
        HostError: this process is not root.
    """
    if os.geteuid() != 0:
        raise HostError("--vm local needs root.", "Run it with sudo.")
    yield LocalShell()
