# SPDX-License-Identifier: Apache-2.0
"""Preempt a target's thread while IPIs are sent to it.

A process with real-time priority on the target's CPU signals the sender that it may send. It
holds the CPU until it observes the send, and sleeps until the IPI has been handled. Each IPI
therefore finds its target preempted: runnable, not halted, and not on a CPU.
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

from ipitrace.base.errors import HostError, MeasurementError
from ipitrace.host.access import missing_to_preempt
from ipitrace.storm.micro.image import MG_READY, MG_READY_PREEMPTED, GuestMemory

_PROGRAM: Final = Path(__file__).with_name("preemptor_process.py")
_ENDING_S: Final = 5.0


class Preemptor:
    """A preempting process, and its result, which is available after it has ended.

    Attributes:
        seen: sends that were made while it had the target's CPU, and that were handled or
            timed out afterwards.
    """

    seen: int = 0
    process: subprocess.Popen[str]

    def __init__(self) -> None:
        self.heartbeat_fd = os.memfd_create("ipitrace-beat")
        os.ftruncate(self.heartbeat_fd, mmap.PAGESIZE)
        self._page = mmap.mmap(self.heartbeat_fd, mmap.PAGESIZE)
        self._counter = memoryview(self._page).cast("Q")

    def heartbeat(self) -> None:
        """Let it continue: it pauses if this is not called for a second.

        Raises:
            MeasurementError: it ended early.
        """
        self._counter[0] += 1
        if self.process.poll():  # 0 if it has finished all sends
            raise _ended_early(self.process.returncode)

    def close(self) -> None:
        """Free the resources of this process."""
        self._counter.release()
        self._page.close()
        os.close(self.heartbeat_fd)


def why_not() -> str | None:
    """Why this process may not start a preempting process; None if it may."""
    missing = missing_to_preempt()
    if not missing:
        return None
    return f"preempting a target's thread needs {' and '.join(missing)}"


@contextlib.contextmanager
def keep_preempting(
    memory: GuestMemory, target: int, cpu: int, *, sends: int, longest_s: float
) -> Iterator[Preemptor]:
    """Keep `target` preempted whenever an IPI is sent to it.

    Args:
        memory: the guest's memory.
        target: the vCPU.
        cpu: the host CPU that the vCPU is pinned to.
        sends: the storm's sends, including the warm-up.
        longest_s: the time after which the preempting process ends itself.

    Raises:
        HostError: it cannot run on that CPU.
        MeasurementError: it ended early.
    """
    preemptor = Preemptor()
    with contextlib.closing(preemptor):
        offsets = _offsets(memory, target)
        arguments = (cpu, sends, math.ceil(longest_s), *offsets)
        preemptor.process = _start(memory, preemptor, cpu, arguments)
        try:
            yield preemptor
        finally:
            output, _ = _end(preemptor.process)
        if preemptor.process.returncode:
            raise _ended_early(preemptor.process.returncode)
        preemptor.seen = int(output)


def _offsets(memory: GuestMemory, target: int) -> tuple[int, ...]:
    at = memory.sending_places(target)
    return at.ready, at.sent, at.first_sent_tsc, at.step


def _start(
    memory: GuestMemory, preemptor: Preemptor, cpu: int, arguments: tuple[int, ...]
) -> subprocess.Popen[str]:
    """Start the process, and wait until it has the CPU."""
    numbers = (memory.size, preemptor.heartbeat_fd, *arguments, MG_READY, MG_READY_PREEMPTED)
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
            pass_fds=[fd, preemptor.heartbeat_fd],
            start_new_session=True,  # Ctrl-C does not end it; closing its stdin does
            text=True,
        )
    finally:
        os.close(fd)
    ready = ""
    try:
        ready = process.stdout.readline() if process.stdout else ""
    finally:
        errors = "" if ready else _end(process)[1]
    if not ready:
        raise _refused(cpu, errors)
    return process


def _end(process: subprocess.Popen[str]) -> tuple[str, str]:
    """End it by closing its stdin; returns its output on stdout and stderr."""
    try:
        return process.communicate(timeout=_ENDING_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.communicate()


def _ended_early(code: int) -> MeasurementError:
    how = f"by signal {-code}" if code < 0 else f"with status {code}"
    return MeasurementError(
        f"The process that preempts the target ended early, {how}.",
        "SIGALRM: the storm took too long. SIGXCPU or SIGKILL: it held its CPU for too long. See "
        "dmesg, and check the host's load.",
    )


def _refused(cpu: int, errors: str) -> HostError:
    reason = (errors.strip().splitlines() or ["it ended"])[-1]
    return HostError(
        f"No process with real-time priority can preempt a vCPU on CPU {cpu}: {reason}.",
        "Run as root, outside of containers that forbid SCHED_FIFO; or omit the scenarios "
        "with a preempted target.",
    )
