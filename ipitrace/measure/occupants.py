# SPDX-License-Identifier: Apache-2.0
"""Names the threads that ran on the vCPUs' CPUs, right after the storm in which they ran."""

import os
from collections.abc import Collection, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ipitrace.correlate.switches import of_others
from ipitrace.host.files import HOST, HostFiles
from ipitrace.vm import discover, process_of
from ipitrace.words.events import Kind
from ipitrace.words.threads import NamedThread, ThreadKind

_IDLE: Final = 0  # the thread id of every CPU's idle task


def switched_threads(events: NDArray[np.void]) -> frozenset[int]:
    """The threads that were switched in or out, from recorded events."""
    switches = events[events["kind"] == Kind.SCHED_SWITCH]
    found = [switches["word"], switches["arg"][of_others(switches)]]
    return frozenset(int(tid) for tid in np.unique(np.concatenate(found)))


def name_threads(
    found: Collection[int],
    vcpu_tids: Sequence[int],
    own_pid: int | None = None,
    files: HostFiles = HOST,
) -> dict[int, NamedThread]:
    """What each of the threads is; those that have ended are not in the result.

    Args:
        found: thread ids.
        vcpu_tids: the thread of each vCPU of the measured VM.
        own_pid: ipitrace's process; this one by default.
        files: the kernel files to read.
    """
    vcpus = {tid: NamedThread(ThreadKind.VCPU, f"vCPU {i}") for i, tid in enumerate(vcpu_tids)}
    named = {tid: vcpus[tid] for tid in found if tid in vcpus}
    if _IDLE in found:
        named[_IDLE] = NamedThread(ThreadKind.IDLE, "idle")
    processes = {
        tid: pid
        for tid in found
        if tid not in named and (pid := process_of(tid, files)) is not None
    }
    own = os.getpid() if own_pid is None else own_pid
    foreign = {tid: pid for tid, pid in processes.items() if pid != own}
    named |= dict.fromkeys(
        processes.keys() - foreign.keys(), NamedThread(ThreadKind.IPITRACE, "ipitrace itself")
    )
    others = _vcpus_of(set(foreign.values()), files) if foreign else {}
    for tid, pid in foreign.items():
        named[tid] = others.get(tid) or _of_process(tid, pid, files)
    return named


def _vcpus_of(pids: Collection[int], files: HostFiles) -> Mapping[int, NamedThread]:
    """The known vCPUs' threads of these processes, found without disturbing their VMs."""
    found = discover(files, lambda _pid, _fds: (None, "not asked"), dict, only=pids)
    return {
        vcpu.tid: NamedThread(ThreadKind.OTHER_VM, f"vCPU {vcpu.index} of {vm.name}")
        for vm in found.vms
        for vcpu in vm.vcpus
        if vcpu.tid is not None
    }


def _of_process(tid: int, pid: int, files: HostFiles) -> NamedThread:
    """A thread by its process's name for itself; kernel threads are one process each."""
    name = files.text(f"/proc/{pid}/comm") or files.text(f"/proc/{tid}/comm") or "?"
    return NamedThread(ThreadKind.PROCESS, f"{name} (pid {pid})")
