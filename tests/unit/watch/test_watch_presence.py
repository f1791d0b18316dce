# SPDX-License-Identifier: Apache-2.0
"""One budget for the checks of all VMs, against real processes."""

import os
import subprocess
import time
from dataclasses import replace

from ipitrace.vm import VirtualMachine
from ipitrace.watch.presence import CHECK_SHARE, MOST_SAVED_S, Presence

VM = VirtualMachine(os.getpid(), "a", ("a",), "?", (), None, 1, None, None, 3, None, unknown={})
CHECK_S = 0.005


def test_the_end_of_a_process_is_known_at_once() -> None:
    presence: Presence[str] = Presence(lambda _vm: None)
    with subprocess.Popen(["sleep", "60"]) as process:
        presence.add("ends", replace(VM, pid=process.pid))
        presence.add("stays", VM)
        assert presence.gone() == {}
        process.kill()
        process.wait()
        assert presence.gone() == {"ends": "its process has ended"}
    presence.remove("ends")
    assert presence.gone() == {}
    presence.close()


def test_two_hundred_vms_share_the_time_of_one() -> None:
    asked = []

    def check(vm: VirtualMachine) -> str | None:
        asked.append(vm.vm_fd)
        end_s = time.thread_time() + CHECK_S
        while time.thread_time() < end_s:
            pass
        return None

    presence: Presence[int] = Presence(check)
    for i in range(200):
        presence.add(i, replace(VM, vm_fd=i))
    began_s = time.monotonic()
    for _ in range(10):
        presence.gone()
        time.sleep(0.05)
    passed_s = time.monotonic() - began_s
    presence.close()
    # One check more than was saved up for, at the most, each time that anything was.
    assert len(asked) <= 1 + (passed_s * CHECK_SHARE + MOST_SAVED_S) / CHECK_S
    assert asked == sorted(asked), "each has its turn before one has two"


def test_a_change_is_told_when_its_turn_comes() -> None:
    presence: Presence[str] = Presence(lambda vm: "gone" if vm.vm_fd == 9 else None)
    presence.add("same", VM)
    presence.add("changed", replace(VM, vm_fd=9))
    time.sleep(0.02)
    assert presence.gone() == {"changed": "gone"}
    presence.close()


def test_a_suspect_waits_for_no_turn() -> None:
    presence: Presence[int] = Presence(lambda vm: "gone" if vm.vm_fd in {1, 150} else None)
    for i in range(200):
        presence.add(i, replace(VM, vm_fd=i))
    assert presence.gone({150, 151}).get(150) == "gone"
    presence.close()
