# SPDX-License-Identifier: Apache-2.0
"""The rival's own program: it takes a vCPU's CPU away around every send.

Run by rival.py as a process of the standard library alone, since what it imports is time
before each repetition. Arguments: FD SIZE CPU TOTAL READY SENT SENT_TSC STEP MG_READY
MG_READY_PREEMPTED. It prints `ready` when it has the CPU, and when it is told to end, or has
done with TOTAL sends, how many of them it saw made while it had the CPU.
"""

import mmap
import os
import select
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


def _told_to_end(timeout_s: float) -> bool:
    """Wait; whether the other end of stdin has been closed."""
    return bool(select.select([0], [], [], timeout_s)[0])


def _rest_until(done: Callable[[], bool]) -> bool:
    """Leave the CPU to the vCPU; False if told to end before it is done."""
    rest_s = _REST_S
    while not done():
        if _told_to_end(rest_s):
            return False
        rest_s = min(2 * rest_s, _LONGEST_S)
    return True


def _see_send(words: memoryview, at: int) -> bool:
    """Spin until the send is made, which the word `at` tells; False if it takes too long."""
    until = time.monotonic() + _LONGEST_S
    while not words[at]:
        if time.monotonic() > until:
            return False
    return True


def main() -> None:
    """Take the CPU, then give it back, for every send."""
    fd, size, cpu, total, *offsets, running, preempted = map(int, sys.argv[1:])
    words = memoryview(mmap.mmap(fd, size)).cast("Q")
    ready, sent, sent_tsc, step = (offset // 8 for offset in offsets)
    os.sched_setaffinity(0, {cpu})
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    print("ready", flush=True)
    seen = 0
    going_on = _rest_until(lambda: words[ready] != 0)  # until the target waits
    while going_on and seen < total:
        words[ready] = preempted
        made = _see_send(words, sent_tsc + step * seen)
        words[ready] = running
        if not made:
            going_on = not _told_to_end(_LONGEST_S)
            continue
        going_on = _rest_until(lambda: words[sent] > seen)  # noqa: B023 - called at once
        seen += going_on
    print(seen, flush=True)


main()
