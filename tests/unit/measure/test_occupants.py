# SPDX-License-Identifier: Apache-2.0
"""The names of threads that ran on the vCPUs' CPUs."""

from collections.abc import Callable, Mapping

import numpy as np
from vm_trees import QEMU, QEMU_DEBUGFS

from ipitrace.abi.events import HOST_EVENT
from ipitrace.host.files import HostFiles
from ipitrace.measure.occupants import name_threads, switched_threads
from ipitrace.words.events import Kind
from ipitrace.words.threads import NamedThread, ThreadKind

Make = Callable[[Mapping[str, str]], HostFiles]


def of_process(tid: int, pid: int, comm: str) -> dict[str, str]:
    return {
        f"/proc/{tid}/status": f"Name:\t{comm}\nTgid:\t{pid}\n",
        f"/proc/{pid}/comm": f"{comm}\n",
    }


def test_each_kind_of_thread(make_files: Make) -> None:
    files = make_files(
        QEMU
        | QEMU_DEBUGFS
        | {"/proc/703/status": "Name:\tCPU 1/KVM\nTgid:\t700\n"}
        | {"/proc/704/status": "Name:\tworker\nTgid:\t700\n"}
        | of_process(40, 40, "stress")
        | of_process(41, 40, "stress")
        | of_process(9, 9, "evil\x1b[2J")
        | of_process(51, 50, "ipitrace")
    )
    found = name_threads([0, 9, 21, 22, 40, 41, 51, 703, 704, 999], (20, 21, 22), 50, files)
    assert found == {
        0: NamedThread(ThreadKind.IDLE, "idle"),
        9: NamedThread(ThreadKind.PROCESS, "evil\x1b[2J (pid 9)"),  # renderers make it plain
        21: NamedThread(ThreadKind.VCPU, "vCPU 1"),
        22: NamedThread(ThreadKind.VCPU, "vCPU 2"),
        40: NamedThread(ThreadKind.PROCESS, "stress (pid 40)"),
        41: NamedThread(ThreadKind.PROCESS, "stress (pid 40)"),
        51: NamedThread(ThreadKind.IPITRACE, "ipitrace itself"),
        703: NamedThread(ThreadKind.OTHER_VM, "vCPU 1 of web,1"),
        704: NamedThread(ThreadKind.PROCESS, "qemu-system-x86 (pid 700)"),
    }


def test_threads_of_both_sides_of_a_switch_are_found() -> None:
    events = np.zeros(4, HOST_EVENT)
    events["kind"] = [Kind.SCHED_SWITCH] * 3 + [Kind.KVM_APIC_IPI]
    events["detail"] = 0, 1, 2, 2
    events["word"] = 5, 6, 7, 8
    events["arg"] = 0x99, 0x99, 9, 10
    assert switched_threads(events) == {5, 6, 7, 9}
