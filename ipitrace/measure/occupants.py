# SPDX-License-Identifier: Apache-2.0
"""Names the threads that run on the vCPUs' CPUs."""

import os
from collections.abc import Collection, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ipitrace.correlate.switches import OTHERS
from ipitrace.host.files import HOST, HostFiles
from ipitrace.vm import discover, process_of
from ipitrace.words.threads import NamedThread, ThreadKind

_IDLE: Final = 0  # the thread id of every CPU's idle task


class ThreadNames:
    """Collects the names of threads while they run on the vCPUs' CPUs: they may end soon."""

    def __init__(
        self, vcpu_tids: Sequence[int], own_pid: int | None = None, files: HostFiles = HOST
    ) -> None:
        """Begin a storm.

        Args:
            vcpu_tids: the thread of each vCPU of the measured VM.
            own_pid: ipitrace's process; this one by default.
            files: the kernel files to read.
        """
        self._files = files
        self._own_pid = os.getpid() if own_pid is None else own_pid
        self._named = {
            tid: NamedThread(ThreadKind.VCPU, f"vCPU {i}") for i, tid in enumerate(vcpu_tids)
        }
        self._named[_IDLE] = NamedThread(ThreadKind.IDLE, "idle")
        self._foreign: dict[int, int] = {}

    def look(self, switches: NDArray[np.void]) -> None:
        """Read the names of the threads in these records of sched_switch that have none yet."""
        others = switches["arg"][switches["detail"] == OTHERS]
        for tid in np.unique(np.concatenate([switches["word"], others])).tolist():
            if tid not in self._named and (named := self._read(tid)) is not None:
                self._named[tid] = named

    def _read(self, tid: int) -> NamedThread | None:
        pid = process_of(tid, self._files)
        if pid is None:
            return None
        if pid == self._own_pid:
            return NamedThread(ThreadKind.IPITRACE, "ipitrace itself")
        self._foreign[tid] = pid
        name = self._files.text(f"/proc/{pid}/comm") or "?"
        return NamedThread(ThreadKind.PROCESS, f"{name} (pid {pid})")

    def result(self) -> dict[int, NamedThread]:
        """Thread id to its name; threads that had ended before look() are not in it."""
        pids = set(self._foreign.values())
        vcpus = _vcpus_of(pids, self._files) if pids else {}
        return self._named | {tid: vcpus[tid] for tid in self._foreign if tid in vcpus}


def _vcpus_of(pids: Collection[int], files: HostFiles) -> Mapping[int, NamedThread]:
    """The known vCPUs' threads of these processes, found without disturbing their VMs."""
    found = discover(files, lambda _pid, _fds: (None, "not asked"), dict, only=pids)
    return {
        vcpu.tid: NamedThread(ThreadKind.OTHER_VM, f"vCPU {vcpu.index} of {vm.name}")
        for vm in found.vms
        for vcpu in vm.vcpus
        if vcpu.tid is not None
    }
