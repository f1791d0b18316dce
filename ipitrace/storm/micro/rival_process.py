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

_REST_S = 50e-6
"""How long the vCPU has its CPU before it is looked whether it has handled the IPI."""
_LONGEST_S = 0.01
"""How long the CPU is kept from the vCPU at most, if no send comes: it may have to end."""


def _told_to_end(timeout_s: float) -> bool:
    """Wait; whether the other end of stdin has been closed."""
    return bool(select.select([0], [], [], timeout_s)[0])


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
    end = False
    while not (end or words[ready]):  # the target has not come to wait yet
        end = _told_to_end(_REST_S)
    for seq in range(total):
        while not end:
            words[ready] = preempted
            made = _see_send(words, sent_tsc + step * seq)
            words[ready] = running
            if made:
                break
            end = _told_to_end(_REST_S)
        while not (end or words[sent] > seq):
            end = _told_to_end(_REST_S)
        if end:
            break
        seen += 1
    print(seen, flush=True)


main()
