# SPDX-License-Identifier: Apache-2.0
"""Counting the host's IPIs while some are caused."""

import ctypes
import hashlib
import os
import threading
import time

import pytest

from ipitrace.host.interrupts import delta, read_interrupts

# arch/x86/entry/syscalls/syscall_64.tbl; enum membarrier_cmd in uapi/linux/membarrier.h
SYS_MEMBARRIER = 324
PRIVATE_EXPEDITED = 1 << 3
REGISTER_PRIVATE_EXPEDITED = 1 << 4


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_ipis_caused_by_membarrier_are_counted_on_the_cpu_they_hit() -> None:
    """membarrier(2) sends a function-call IPI to every CPU that runs another thread of ours."""
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    here, there = sorted(os.sched_getaffinity(0))[:2]
    if syscall(SYS_MEMBARRIER, REGISTER_PRIVATE_EXPEDITED, 0, 0):
        pytest.skip(f"membarrier: {os.strerror(ctypes.get_errno())}")
    before = read_interrupts()
    assert before is not None
    stop = threading.Event()

    def busy() -> None:
        os.sched_setaffinity(0, {there})
        data = bytes(1 << 20)
        while not stop.is_set():
            hashlib.sha256(data)  # without the GIL

    runner = threading.Thread(target=busy)
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {here})
    runner.start()
    try:
        hit = 0
        deadline_s = time.monotonic() + 10
        while hit < 50 and time.monotonic() < deadline_s:
            for _ in range(50):
                assert syscall(SYS_MEMBARRIER, PRIVATE_EXPEDITED, 0, 0) == 0
            after = read_interrupts()
            assert after is not None
            added = delta(before, after)
            hit = dict(zip(added.cpus, added.rows["CAL"], strict=True))[there] or 0
        assert hit >= 50
        assert (added.total("CAL") or 0) >= hit
    finally:
        stop.set()
        runner.join()
        os.sched_setaffinity(0, mine)
