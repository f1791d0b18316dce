# SPDX-License-Identifier: Apache-2.0
"""Runs of ipitrace that are in progress: each has a name in the kernel's list of sockets.

A run has its VM only while a storm lasts, so that looking for VMs now and then may miss it.
An abstract UNIX socket (unix(7)) is no file, needs no right, and goes with the process,
however that ends. Nothing is ever sent to it. It is seen in its own network namespace only.
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
"""Other runs that are told of; a user may make any number of such names."""

_NAME: Final = re.compile(
    r" @ipitrace-run/([0-9]{1,10})/([0-9]{1,5}(?:,[0-9]{1,5})*)?$", re.MULTILINE
)
_LONGEST: Final = 108  # sun_path of struct sockaddr_un, unix(7)


@dataclass(frozen=True)
class OtherRun:
    """A run in another process."""

    pid: int
    cpus: frozenset[int]
    """What its vCPUs are pinned to; empty where that is not known."""


@contextlib.contextmanager
def announced(cpus: Collection[int]) -> Iterator[None]:
    """While inside, other runs see this one, whose vCPUs are pinned to `cpus`."""
    who = f"\0ipitrace-run/{os.getpid()}/"
    name = who + ",".join(map(str, sorted(cpus)))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as mark:
        with contextlib.suppress(OSError):  # a second run in one process, or no such sockets
            mark.bind(name if len(name) <= _LONGEST else who)
        yield


def other_runs(files: HostFiles = HOST) -> tuple[OtherRun, ...]:
    """The runs of other processes, at most MOST_RUNS.

    Any user can make such a name: it is a hint, no proof.
    """
    found = {
        int(match[1]): frozenset(map(int, filter(None, (match[2] or "").split(","))))
        for match in _NAME.finditer(files.text("/proc/net/unix") or "")
    }
    found.pop(os.getpid(), None)
    return tuple(OtherRun(pid, cpus) for pid, cpus in sorted(found.items())[:MOST_RUNS])
