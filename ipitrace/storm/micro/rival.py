# SPDX-License-Identifier: Apache-2.0
"""Keeping a target's thread off its CPU while IPIs are sent to it.

A process with real-time priority on the target's CPU tells the sender that it may send,
holds the CPU until it sees that the send was made, and rests until the IPI has been
handled. So each IPI finds its target preempted: runnable, in no way halted, and not on
a CPU.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ipitrace.errors import HostError
from ipitrace.host.access import may_preempt
from ipitrace.storm.micro.image import MG_READY, MG_READY_PREEMPTED, GuestMemory

_PROGRAM: Final = Path(__file__).with_name("rival_process.py")


class Rival:
    """What a rival saw; known when it has ended.

    Attributes:
        seen: sends that were made while it had the target's CPU, and that were handled or
            timed out afterwards.
    """

    seen: int = 0


def why_not() -> str | None:
    """Why this process may start no rival; None where it may."""
    return None if may_preempt() else "only root may keep a target's thread off its CPU"


@contextlib.contextmanager
def keep_preempting(memory: GuestMemory, target: int, cpu: int, sends: int) -> Iterator[Rival]:
    """While inside, have `target` preempted whenever an IPI is sent to it.

    Args:
        memory: of the guest.
        target: the vCPU.
        cpu: the host CPU that it is pinned to.
        sends: of the storm, warm-up included.

    Raises:
        HostError: there can be none on that CPU.
    """
    process = _start(memory, target, cpu, sends)
    rival = Rival()
    try:
        yield rival
    finally:
        said, complaint = process.communicate()  # closes its stdin: it ends
    if process.returncode:
        raise _refused(cpu, complaint)
    rival.seen = int(said)


def _start(memory: GuestMemory, target: int, cpu: int, sends: int) -> subprocess.Popen[str]:
    """Start it, and wait until it has the CPU."""
    at = memory.sending_places(target)
    offsets = (at.ready, at.sent, at.first_sent_tsc, at.step)
    numbers = (memory.size, cpu, sends, *offsets, MG_READY, MG_READY_PREEMPTED)
    try:
        fd = memory.open()
    except OSError as error:
        raise _refused(cpu, f"the guest's memory: {error.strerror}") from error
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", _PROGRAM, str(fd), *map(str, numbers)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[fd],
            text=True,
        )
    finally:
        os.close(fd)
    if process.stdout is None or process.stdout.readline() != "ready\n":
        raise _refused(cpu, process.communicate()[1])
    return process


def _refused(cpu: int, complaint: str) -> HostError:
    reason = (complaint.strip().splitlines() or ["it ended"])[-1]
    return HostError(
        f"No process of real-time priority can keep a vCPU off CPU {cpu}: {reason}.",
        "Run as root, outside of containers that forbid SCHED_FIFO; or leave out the scenarios "
        "with a preempted target.",
    )
