# SPDX-License-Identifier: Apache-2.0
"""The rival's own program: it takes a vCPU's CPU away around every send.

Run by rival.py as a process of the standard library alone, since what it imports is time
before each repetition. Arguments: FD SIZE BEAT_FD CPU TOTAL LONGEST_S READY SENT SENT_TSC STEP
MG_READY MG_READY_PREEMPTED. It prints `ready` when it has the CPU, and when it is told to end,
or has done with TOTAL sends, how many of them it saw made while it had the CPU.

It has real-time priority on a CPU of a host that others use, so it must not depend on anybody
to let go of it:

- Whoever started it counts up the word in BEAT_FD. While that stands still, so does it: at
  normal priority, in a sleep. When the other end of stdin is closed, it ends.
- While no send comes, it takes the CPU ever more rarely.
- LONGEST_S after its start SIGALRM ends it, whatever it does.
- The kernel ends it when it has used its priority for long without a sleep (RLIMIT_RTTIME).
"""

import mmap
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable

_REST_S = 50e-6
"""How long the vCPU has its CPU at first before it is looked whether it is done.

Then twice as long, and so on: where KVM emulates guest kernel mode, a vCPU that is
interrupted all the time gets nowhere.
"""
_LONGEST_S = 0.01
"""The longest rest; and how long the CPU is kept from the vCPU if no send comes, since it
may have to end."""
_PATIENCE_S = 1.0
"""How long the beat may stand still, and sends may fail to come, until less is done."""
_RARELY_S = 1.0
"""Between two tries from then on: 1 % of the CPU."""
_MOST_AT_ONCE_US = 500_000
"""Far more than _LONGEST_S, which is what it needs."""


def _told_to_end(timeout_s: float) -> bool:
    """Wait; whether the other end of stdin has been closed."""
    return bool(select.select([0], [], [], timeout_s)[0])


class _Beat:
    """Whether whoever started us still runs."""

    def __init__(self, fd: int) -> None:
        self._words = memoryview(mmap.mmap(fd, mmap.PAGESIZE)).cast("Q")
        self._last, self._since_s = self._words[0], time.monotonic()

    def _stands_still(self) -> bool:
        if self._words[0] != self._last:
            self._last, self._since_s = self._words[0], time.monotonic()
        return time.monotonic() - self._since_s > _PATIENCE_S

    def rest(self, rest_s: float) -> bool:
        """Leave the CPU to the vCPU, and as long as the beat stands still; False if told to end."""
        if _told_to_end(rest_s):
            return False
        if not self._stands_still():
            return True
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        while self._stands_still():
            if _told_to_end(_PATIENCE_S / 4):
                return False
        _take_priority()
        return True


def _take_priority() -> None:
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))


def _rest_until(done: Callable[[], bool], beat: _Beat) -> bool:
    """Leave the CPU to the vCPU; False if told to end before it is done.

    It rests at least once: so the CPU is never kept for more than one send.
    """
    rest_s = _REST_S
    while beat.rest(rest_s):
        if done():
            return True
        rest_s = min(2 * rest_s, _LONGEST_S)
    return False


def _see_send(words: memoryview, at: int) -> bool:
    """Spin until the send is made, which the word `at` tells; False if it takes too long."""
    until = time.monotonic() + _LONGEST_S
    while not words[at]:
        if time.monotonic() > until:
            return False
    return True


def main() -> None:
    """Take the CPU, then give it back, for every send."""
    fd, size, beat_fd, cpu, total, longest_s, *rest = map(int, sys.argv[1:])
    *offsets, running, preempted = rest
    signal.alarm(longest_s)
    resource.setrlimit(resource.RLIMIT_RTTIME, (_MOST_AT_ONCE_US, _MOST_AT_ONCE_US))
    words = memoryview(mmap.mmap(fd, size)).cast("Q")
    beat = _Beat(beat_fd)
    ready, sent, sent_tsc, step = (offset // 8 for offset in offsets)
    os.sched_setaffinity(0, {cpu})
    _take_priority()
    print("ready", flush=True)
    seen = 0
    going_on = _rest_until(lambda: words[ready] != 0, beat)  # until the target waits
    came_s = time.monotonic()
    while going_on and seen < total:
        words[ready] = preempted
        made = _see_send(words, sent_tsc + step * seen)
        words[ready] = running
        if not made:
            patient = time.monotonic() - came_s < _PATIENCE_S
            going_on = beat.rest(_LONGEST_S if patient else _RARELY_S)
            continue
        going_on = _rest_until(lambda: words[sent] > seen, beat)  # noqa: B023 - called at once
        seen += going_on
        came_s = time.monotonic()
    print(seen, flush=True)


main()
