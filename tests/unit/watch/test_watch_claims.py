# SPDX-License-Identifier: Apache-2.0
"""vCPU threads that have ended before their VM was examined."""

import threading
import time
from dataclasses import replace

import pytest

from ipitrace.tracer.counting import Claim
from ipitrace.watch import claims as claims_module
from ipitrace.watch.claims import EndedClaims, ended_vm, why_ended


def claim(pid: int, tid: int, since_ns: int = 0) -> Claim:
    return Claim(since_ns, tid, pid, tid, 1000, "vmm")


def test_threads_are_reported_together_when_all_of_their_process_have_ended() -> None:
    every = [claim(7, 70, 2), claim(7, 71, 1), claim(8, 80), claim(9, 90)]
    living = {every[3]}
    ended = EndedClaims(living.__contains__)
    assert ended.of(every) == [(every[1], every[0]), (every[2],)]
    living.clear()
    assert ended.of(every[3:]) == [(every[3],)]
    assert ended.of([]) == []


def test_a_thread_waits_once_for_the_others_of_its_process() -> None:
    first, second, third = claim(7, 70), claim(7, 71, 1), claim(7, 72, 2)
    living = {second, third}
    ended = EndedClaims(living.__contains__)
    assert ended.of([first, second, third]) == []
    living.remove(second)
    assert ended.of([first, second, third]) == [(first,)], "and not for ever"
    living.clear()
    assert ended.of([second, third]) == [(second, third)]


def test_a_later_thread_with_the_same_id_is_another() -> None:
    here = threading.get_native_id()
    now = claim(0, here, time.monotonic_ns())
    before_boot = replace(now, since_ns=-time.clock_gettime_ns(time.CLOCK_BOOTTIME))
    assert claims_module._lives(now)
    assert not claims_module._lives(before_boot)
    assert not claims_module._lives(replace(now, tid=1 << 30))


class _HiddenFiles:
    """/proc of other users' processes, mounted with hidepid."""

    def text(self, _path: str) -> None:
        return None


def test_a_thread_that_proc_hides_is_no_thread_that_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(claims_module, "HOST", _HiddenFiles())
    monkeypatch.setattr(claims_module, "read_started_at", lambda _tid: None)
    assert claims_module._lives(claim(0, threading.get_native_id()))
    assert not claims_module._lives(claim(0, 1 << 30))
    assert why_ended([claim(1, 1)]) == "these vCPU threads ended before the VM was examined"


@pytest.mark.parametrize("n", [1, 3])
def test_what_is_known_of_the_vm(n: int) -> None:
    threads = [claim(1 << 30, 70 + i, i) for i in range(n)]
    vm = ended_vm(threads)
    assert (vm.pid, vm.name, vm.uid, vm.directory) == (1 << 30, f"pid:{1 << 30}", 1000, None)
    assert why_ended(threads) == "its process ended before the VM was examined"
    assert why_ended([claim(1, 70)]) == "these vCPU threads ended before the VM was examined"
