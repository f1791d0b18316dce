# SPDX-License-Identifier: Apache-2.0
"""Rings that overrun: by events at ten times the rate that is drained, and by a reader held up."""

import ctypes
import os
import time
from pathlib import Path

import pytest
from place import Place, assert_told, whole

from bench.rings import _Producer
from ipitrace.errors import ExitCode

pytestmark = pytest.mark.live

SLOTS = 16384  # as run takes them; drained every 20 ms it loses nothing at 0.6 M/s
DRAIN_S = 0.02
TEN_TIMES = 6e6
SECONDS = 1.0
HELD_S = 4.0  # the busiest ring, which has two events an IPI, is full after 0.4 s

# include/uapi/linux/ptrace.h and wait.h
PTRACE_DETACH, PTRACE_SEIZE, PTRACE_INTERRUPT, WAIT_FOR_ALL = 17, 0x4206, 0x4207, 0x40000000


def test_ten_times_the_rate_loses_events_and_counts_each() -> None:
    with _Producer() as producer, producer.rings(SLOTS) as reader:
        reader.drain()
        written, lost = int(reader.seen().sum()), int(reader.lost.sum())
        producer.start(TEN_TIMES, SECONDS)
        taken = 0
        over = False
        while not over:
            over = producer.finished()
            time.sleep(DRAIN_S)
            taken += sum(len(records) for _vcpu, _ring, records in reader.drain())
        written, lost = int(reader.seen().sum()) - written, int(reader.lost.sum()) - lost
    assert lost > 0
    assert taken + lost == written


def test_a_run_whose_reader_is_held_up_is_not_to_be_trusted(place: Place) -> None:
    words = ("run", "--scenario", "unicast-running", "--count", 120_000, "--repeat", 1, "--pace", 0)
    with place.starts(*words, "-o", "rec") as program:
        while program.process.poll() is None:
            if sends(program.process.pid):
                hold_first_thread(program.process.pid, HELD_S)
            time.sleep(0.05)
        program.finish(300)
    assert_told(program, ExitCode.UNTRUSTWORTHY)
    run = whole(place.cwd / "rec")
    assert run.losses.events_lost > 0
    assert any("lost" in reason for reason in run.untrustworthy)


def sends(pid: int) -> bool:
    """Whether its two vCPUs' threads are there."""
    try:
        threads = [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()]
        return sum(len(os.sched_getaffinity(tid)) == 1 for tid in threads) >= 2
    except OSError:  # one has ended
        return False


def hold_first_thread(tid: int, seconds: float) -> None:
    """Stop the thread that drains, and no other, as a debugger does."""
    ptrace = ctypes.CDLL(None, use_errno=True).ptrace
    ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
    assert ptrace(PTRACE_SEIZE, tid, None, None) == 0, os.strerror(ctypes.get_errno())
    try:
        assert ptrace(PTRACE_INTERRUPT, tid, None, None) == 0, os.strerror(ctypes.get_errno())
        os.waitpid(tid, WAIT_FOR_ALL)
        time.sleep(seconds)
    finally:
        ptrace(PTRACE_DETACH, tid, None, None)
