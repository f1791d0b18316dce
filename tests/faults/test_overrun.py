# SPDX-License-Identifier: Apache-2.0
"""Rings that overrun: by events at ten times the rate that is drained, and by a reader held up."""

import contextlib
import ctypes
import os
import time
from pathlib import Path

import pytest
from place import Place, assert_told, whole

from bench.rings import _Producer
from ipitrace.base.errors import ExitCode

pytestmark = pytest.mark.live

SLOTS = 16384  # as run takes for 16 vCPUs; drained every 20 ms they lose nothing at 0.6 M/s
DRAIN_S = 0.02
TEN_TIMES = 6e6
SECONDS = 1.0
# The busiest ring has two events an IPI: it is full after 1.6 s of the sender's CPU time, and on
# a crowded host after four times that, when half of the storm is over.
BEGUN_CPU_S, HELD_CPU_S = 0.1, 12.1
IDLE_S, LONGEST_S = 2.0, 60.0

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
    words = ("run", "--scenario", "unicast-running", "--count", 60_000, "--repeat", 1, "--pace", 0)
    with place.starts(*words, "-o", "rec") as program:
        held: set[frozenset[int]] = set()
        while program.process.poll() is None:
            threads = pinned_threads(program.process.pid)
            begun = cpu_s(program.process.pid, threads) > BEGUN_CPU_S
            if begun and threads not in held:  # once in each storm
                held.add(threads)
                hold_first_thread(program.process.pid, threads)
            time.sleep(0.02)
        program.finish(300)
    assert_told(program, ExitCode.UNTRUSTWORTHY)
    run = whole(place.cwd / "rec")
    assert run.losses.events_lost > 0
    assert any("lost" in reason for reason in run.untrustworthy)


def pinned_threads(pid: int) -> frozenset[int]:
    """Its vCPUs' threads; none while no storm runs."""
    try:
        threads = [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()]
        return frozenset(tid for tid in threads if len(os.sched_getaffinity(tid)) == 1)
    except OSError:  # one has ended
        return frozenset()


def cpu_s(pid: int, threads: frozenset[int]) -> float:
    """What the busiest of them has used so far."""
    used = [0.0]
    for tid in threads:
        with contextlib.suppress(OSError):  # it has ended
            text = Path(f"/proc/{pid}/task/{tid}/stat").read_text()
            user, system = text.rpartition(")")[2].split()[11:13]  # proc_pid_stat(5)
            used.append((int(user) + int(system)) / os.sysconf("SC_CLK_TCK"))
    return max(used)


def hold_first_thread(tid: int, threads: frozenset[int]) -> None:
    """Stop the thread that drains, and no other, as a debugger does, while the others run."""
    ptrace = ctypes.CDLL(None, use_errno=True).ptrace
    ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
    assert ptrace(PTRACE_SEIZE, tid, None, None) == 0, os.strerror(ctypes.get_errno())
    try:
        assert ptrace(PTRACE_INTERRUPT, tid, None, None) == 0, os.strerror(ctypes.get_errno())
        os.waitpid(tid, WAIT_FOR_ALL)
        until_s = time.monotonic() + LONGEST_S
        used_s, idle_from_s = 0.0, time.monotonic()
        while used_s < HELD_CPU_S and time.monotonic() < min(until_s, idle_from_s + IDLE_S):
            time.sleep(0.05)
            if (now_s := cpu_s(tid, threads)) > used_s:
                used_s, idle_from_s = now_s, time.monotonic()
    finally:
        ptrace(PTRACE_DETACH, tid, None, None)
