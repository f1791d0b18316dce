# SPDX-License-Identifier: Apache-2.0
"""Other runs of ipitrace on this host. Each run has a name in the kernel's list of sockets.

A run has a VM only during a storm, so a periodic search for VMs can miss it. An abstract UNIX
socket (unix(7)) is not a file, needs no privilege, and disappears with its process however the
process ends. Nothing is ever sent to it. It is visible in its own network namespace only.
"""

import contextlib
import os
import re
import socket
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final

from ipitrace.host.files import HOST, HostFiles

MOST_RUNS: Final = 16
"""The most other runs that are reported; a user may create any number of such names."""

_NAME: Final = re.compile(
    r" @ipitrace-run/([0-9]{1,10})/([0-9]{1,5}(?:,[0-9]{1,5})*)?$", re.MULTILINE
)
_LONGEST: Final = 108  # sun_path of struct sockaddr_un, unix(7)


@dataclass(frozen=True)
class OtherRun:
    """A run in another process."""

    pid: int
    cpus: frozenset[int]
    """The CPUs that its vCPUs are pinned to; empty if unknown."""


@contextlib.contextmanager
def announced(cpus: Collection[int]) -> Iterator[None]:
    """Make this run, whose vCPUs are pinned to `cpus`, visible to other runs while inside."""
    prefix = f"\0ipitrace-run/{os.getpid()}/"
    name = prefix + ",".join(map(str, sorted(cpus)))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as marker:
        with contextlib.suppress(OSError):  # a second run in this process, or no abstract sockets
            marker.bind(name if len(name) <= _LONGEST else prefix)
        yield


def other_runs(files: HostFiles = HOST) -> tuple[OtherRun, ...]:
    """The runs of other processes, at most MOST_RUNS.

    Any user can create such a name, so it is not a proof of a run.
    """
    found = {
        int(match[1]): frozenset(map(int, filter(None, (match[2] or "").split(","))))
        for match in _NAME.finditer(files.text("/proc/net/unix") or "")
    }
    found.pop(os.getpid(), None)
    return tuple(OtherRun(pid, cpus) for pid, cpus in sorted(found.items())[:MOST_RUNS])
