# SPDX-License-Identifier: Apache-2.0
"""The program of the preempting process: it takes a vCPU's CPU around every send.

preemptor.py runs this file as a process that uses only the standard library, because its import
time delays each repetition. Arguments: FD SIZE HEARTBEAT_FD CPU TOTAL LONGEST_S READY SENT
SENT_TSC STEP MG_READY MG_READY_PREEMPTED. It prints `ready` when it has the CPU. When it is told
to end, or has finished TOTAL sends, it prints how many sends it observed while it had the CPU.

It has real-time priority on a CPU that other processes use. Several mechanisms therefore ensure
that it releases the CPU:

- The process that started it increments the word in HEARTBEAT_FD. While the word does not change,
  this process sleeps at normal priority. When the other end of stdin is closed, it ends.
- While there are no sends, it takes the CPU less and less often.
- SIGALRM ends it LONGEST_S after its start, in any state.
- The kernel ends it if it uses its priority for too long without a sleep (RLIMIT_RTTIME).
"""

import mmap
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable

_SLEEP_S = 50e-6
"""The time for which the vCPU has its CPU before the first check whether the send is finished.

The time is then doubled for each check: where KVM emulates guest kernel mode, a vCPU that is
interrupted too often makes no progress.
"""
_LONGEST_S = 0.01
"""The longest sleep. Also the longest time for which the CPU is kept from the vCPU if there is no
send, because the vCPU may have to end."""
_GRACE_S = 1.0
"""The time without a heartbeat, or without a send, after which the activity is reduced."""
_IDLE_S = 1.0
"""The time between two tries from then on: 1 % of the CPU."""
_MOST_AT_ONCE_US = 500_000
"""Far more than _LONGEST_S, the longest time that is needed."""


def _end_requested(timeout_s: float) -> bool:
    """Wait; returns whether the other end of stdin was closed."""
    return bool(select.select([0], [], [], timeout_s)[0])


class _Heartbeat:
    """Checks whether the process that started this one still runs."""

    def __init__(self, fd: int) -> None:
        self._words = memoryview(mmap.mmap(fd, mmap.PAGESIZE)).cast("Q")
        self._last, self._since_s = self._words[0], time.monotonic()

    def _stopped(self) -> bool:
        if self._words[0] != self._last:
            self._last, self._since_s = self._words[0], time.monotonic()
        return time.monotonic() - self._since_s > _GRACE_S

    def sleep(self, sleep_s: float) -> bool:
        """Leave the CPU to the vCPU, also while the heartbeat stops; False if told to end."""
        if _end_requested(sleep_s):
            return False
        if not self._stopped():
            return True
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        while self._stopped():
            if _end_requested(_GRACE_S / 4):
                return False
        _take_priority()
        return True


def _take_priority() -> None:
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))


def _sleep_until(done: Callable[[], bool], heartbeat: _Heartbeat) -> bool:
    """Leave the CPU to the vCPU; False if told to end before it is done.

    It sleeps at least once, so the CPU is never kept for more than one send.
    """
    sleep_s = _SLEEP_S
    while heartbeat.sleep(sleep_s):
        if done():
            return True
        sleep_s = min(2 * sleep_s, _LONGEST_S)
    return False


def _wait_for_send(words: memoryview, at: int) -> bool:
    """Spin until the word `at` shows the send; False if it takes too long."""
    until = time.monotonic() + _LONGEST_S
    while not words[at]:
        if time.monotonic() > until:
            return False
    return True


def main() -> None:
    """Take the CPU, and give it back, for every send."""
    fd, size, heartbeat_fd, cpu, total, longest_s, *numbers = map(int, sys.argv[1:])
    *offsets, running, preempted = numbers
    signal.alarm(longest_s)
    resource.setrlimit(resource.RLIMIT_RTTIME, (_MOST_AT_ONCE_US, _MOST_AT_ONCE_US))
    words = memoryview(mmap.mmap(fd, size)).cast("Q")
    heartbeat = _Heartbeat(heartbeat_fd)
    ready, sent, sent_tsc, step = (offset // 8 for offset in offsets)
    os.sched_setaffinity(0, {cpu})
    _take_priority()
    print("ready", flush=True)
    seen = 0
    going_on = _sleep_until(lambda: words[ready] != 0, heartbeat)  # until the target waits
    last_send_s = time.monotonic()
    while going_on and seen < total:
        words[ready] = preempted
        made = _wait_for_send(words, sent_tsc + step * seen)
        words[ready] = running
        if not made:
            recent = time.monotonic() - last_send_s < _GRACE_S
            going_on = heartbeat.sleep(_LONGEST_S if recent else _IDLE_S)
            continue
        going_on = _sleep_until(lambda: words[sent] > seen, heartbeat)  # noqa: B023 - called at once
        seen += going_on
        last_send_s = time.monotonic()
    print(seen, flush=True)


main()
