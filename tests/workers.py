# SPDX-License-Identifier: Apache-2.0
"""Threads of this process that a tracer watches, and what the scheduler counts of them."""

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path


class Worker:
    """A thread that does what it is told, and otherwise sleeps."""

    def __init__(self) -> None:
        self._wake, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._job: Callable[[], None] | None = None
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._thread.start()
        self._done.acquire()
        self.tid = self._thread.native_id or 0

    def _loop(self) -> None:
        self._done.release()
        while True:
            self._wake.acquire()
            if self._job is None:
                return
            self._job()
            self._done.release()

    def do(self, job: Callable[[], None]) -> None:
        self._job = job
        self._wake.release()
        self._done.acquire()

    def stop(self) -> None:
        self._job = None
        self._wake.release()
        self._thread.join()


def nap(times: int) -> None:
    """Leave the CPU and get one again, so many times."""
    for _ in range(times):
        time.sleep(0.0002)


def context_switches(tid: int, pid: int | str = "self") -> int:
    """How often the thread has left a CPU, says the scheduler."""
    text = Path(f"/proc/{pid}/task/{tid}/status").read_text()
    return sum(
        int(line.split()[1]) for line in text.splitlines() if "voluntary_ctxt_switches" in line
    )


def wait_until_asleep(tid: int) -> None:
    """Until the thread has left its CPU and does not come back."""
    while True:
        before = context_switches(tid)
        time.sleep(0.005)
        state = Path(f"/proc/self/task/{tid}/status").read_text()
        if "S (sleeping)" in state and context_switches(tid) == before:
            return


def first_process() -> dict[str, int]:
    """How often each thread of process 1 has left a CPU.

    Some kernels for virtual machines run no BPF program, nor any other tracer, where the
    current task is of process 1, and do not count that as a miss. Who comes after it on a
    CPU is then not seen to come, at most once for each of these.
    """
    found = {}
    for tid in os.listdir("/proc/1/task"):  # noqa: PTH208
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found[tid] = context_switches(int(tid), 1)
    return found


class Witness:
    """What the scheduler counts of a thread that is asleep now, and each time it is asked."""

    def __init__(self, tid: int) -> None:
        wait_until_asleep(tid)
        self._tid = tid
        self._others, self._left = first_process(), context_switches(tid)

    def left(self) -> int:
        """How often the thread has left a CPU since: each time after it came to one."""
        wait_until_asleep(self._tid)
        return context_switches(self._tid) - self._left

    def can_be_seen(self) -> range:
        """How many switches, to and from a CPU, a tracer can have seen since."""
        hidden = sum(n - self._others.get(tid, 0) for tid, n in first_process().items())
        return range(2 * self.left() - hidden, 2 * self.left() + 1)
