# SPDX-License-Identifier: Apache-2.0
"""The names of threads that ran on the vCPUs' CPUs."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from vm_trees import QEMU, QEMU_DEBUGFS

from ipitrace.abi.events import RING_EVENT
from ipitrace.host.files import HostFiles
from ipitrace.measure.occupants import ThreadNames
from ipitrace.words.threads import NamedThread, ThreadKind

Make = Callable[[Mapping[str, str]], HostFiles]


def of_process(tid: int, pid: int, comm: str) -> dict[str, str]:
    return {
        f"/proc/{tid}/status": f"Name:\t{comm}\nTgid:\t{pid}\n",
        f"/proc/{pid}/comm": f"{comm}\n",
    }


def switches(*words: int) -> Any:
    """A switch out for each of these threads."""
    records = np.zeros(len(words), RING_EVENT)
    records["word"] = words
    return records


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
    names = ThreadNames((20, 21, 22), 50, files)
    names.look(switches(0, 9, 21, 22, 40, 41, 51, 703, 704, 999))
    assert names.result() == {
        0: NamedThread(ThreadKind.IDLE, "idle"),
        9: NamedThread(ThreadKind.PROCESS, "evil\x1b[2J (pid 9)"),  # renderers make it plain
        20: NamedThread(ThreadKind.VCPU, "vCPU 0"),
        21: NamedThread(ThreadKind.VCPU, "vCPU 1"),
        22: NamedThread(ThreadKind.VCPU, "vCPU 2"),
        40: NamedThread(ThreadKind.PROCESS, "stress (pid 40)"),
        41: NamedThread(ThreadKind.PROCESS, "stress (pid 40)"),
        51: NamedThread(ThreadKind.IPITRACE, "ipitrace itself"),
        703: NamedThread(ThreadKind.OTHER_VM, "vCPU 1 of web,1"),
        704: NamedThread(ThreadKind.PROCESS, "qemu-system-x86 (pid 700)"),
    }


def test_threads_on_both_sides_of_a_switch_are_found(make_files: Make) -> None:
    processes = [of_process(tid, tid, f"p{tid}") for tid in (5, 6, 7, 9, 0x99)]
    names = ThreadNames((), 50, make_files({k: v for p in processes for k, v in p.items()}))
    records = switches(5, 6, 7)
    records["detail"] = 0, 1, 2
    records["arg"] = 0x99, 0x99, 9  # of the first two it is no thread
    names.look(records)
    assert names.result().keys() == {0, 5, 6, 7, 9}


def test_a_thread_keeps_the_name_that_it_had_when_it_was_seen(
    make_files: Make, tmp_path: Path
) -> None:
    names = ThreadNames((), 50, make_files(of_process(5, 5, "brief")))
    names.look(switches(5))
    shutil.rmtree(tmp_path / "proc")
    names.look(switches(5))
    assert names.result()[5] == NamedThread(ThreadKind.PROCESS, "brief (pid 5)")
