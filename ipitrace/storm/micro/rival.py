# SPDX-License-Identifier: Apache-2.0
"""Keeping a target's thread off its CPU while IPIs are sent to it.

A process with real-time priority on the target's CPU tells the sender that it may send,
holds the CPU until it sees that the send was made, and rests until the IPI has been
handled. So each IPI finds its target preempted: runnable, in no way halted, and not on
a CPU.
"""

import contextlib
import math
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ipitrace.base.errors import (
    HostError,
    MeasurementError,
)
from ipitrace.host.access import missing_to_preempt
from ipitrace.storm.micro.image import MG_READY, MG_READY_PREEMPTED, GuestMemory

_PROGRAM: Final = Path(__file__).with_name("rival_process.py")
_ENDING_S: Final = 5.0


class Rival:
    """A rival, and what it saw; that is known when it has ended.

    Attributes:
        seen: sends that were made while it had the target's CPU, and that were handled or
            timed out afterwards.
    """

    seen: int = 0
    process: subprocess.Popen[str]

    def __init__(self) -> None:
        self.beat_fd = os.memfd_create("ipitrace-beat")
        os.ftruncate(self.beat_fd, mmap.PAGESIZE)
        self._page = mmap.mmap(self.beat_fd, mmap.PAGESIZE)
        self._beat = memoryview(self._page).cast("Q")

    def live(self) -> None:
        """Let it go on: it rests a second after the last call of this.

        Raises:
            MeasurementError: it ended early.
        """
        self._beat[0] += 1
        if self.process.poll():  # 0 when it has done with all sends
            raise _ended_early(self.process.returncode)

    def close(self) -> None:
        """Give back what it took here."""
        self._beat.release()
        self._page.close()
        os.close(self.beat_fd)


def why_not() -> str | None:
    """Why this process may start no rival; None where it may."""
    missing = missing_to_preempt()
    if not missing:
        return None
    return f"to keep a target's thread off its CPU takes {' and '.join(missing)}"


@contextlib.contextmanager
def keep_preempting(
    memory: GuestMemory, target: int, cpu: int, *, sends: int, longest_s: float
) -> Iterator[Rival]:
    """While inside, have `target` preempted whenever an IPI is sent to it.

    Args:
        memory: of the guest.
        target: the vCPU.
        cpu: the host CPU that it is pinned to.
        sends: of the storm, warm-up included.
        longest_s: after which the rival ends by itself.

    Raises:
        HostError: there can be none on that CPU.
        MeasurementError: it ended early.
    """
    rival = Rival()
    with contextlib.closing(rival):
        offsets = _offsets(memory, target)
        told = (cpu, sends, math.ceil(longest_s), *offsets)
        rival.process = _start(memory, rival, cpu, told)
        try:
            yield rival
        finally:
            said, _ = _end(rival.process)
        if rival.process.returncode:
            raise _ended_early(rival.process.returncode)
        rival.seen = int(said)


def _offsets(memory: GuestMemory, target: int) -> tuple[int, ...]:
    at = memory.sending_places(target)
    return at.ready, at.sent, at.first_sent_tsc, at.step


def _start(
    memory: GuestMemory, rival: Rival, cpu: int, told: tuple[int, ...]
) -> subprocess.Popen[str]:
    """Start it, and wait until it has the CPU."""
    numbers = (memory.size, rival.beat_fd, *told, MG_READY, MG_READY_PREEMPTED)
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
            pass_fds=[fd, rival.beat_fd],
            start_new_session=True,  # it ends with its stdin, not by Ctrl-C
            text=True,
        )
    finally:
        os.close(fd)
    ready = ""
    try:
        ready = process.stdout.readline() if process.stdout else ""
    finally:
        complaint = "" if ready else _end(process)[1]
    if not ready:
        raise _refused(cpu, complaint)
    return process


def _end(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Close its stdin, at which it ends; what it printed, and what it complained of."""
    try:
        return process.communicate(timeout=_ENDING_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.communicate()


def _ended_early(code: int) -> MeasurementError:
    how = f"by signal {-code}" if code < 0 else f"with status {code}"
    return MeasurementError(
        f"The process that preempts the target ended early, {how}.",
        "SIGALRM: the storm took far too long; SIGXCPU or SIGKILL: it held its CPU for long. See "
        "dmesg, and the host's load.",
    )


def _refused(cpu: int, complaint: str) -> HostError:
    reason = (complaint.strip().splitlines() or ["it ended"])[-1]
    return HostError(
        f"No process of real-time priority can keep a vCPU off CPU {cpu}: {reason}.",
        "Run as root, outside of containers that forbid SCHED_FIFO; or leave out the scenarios "
        "with a preempted target.",
    )
