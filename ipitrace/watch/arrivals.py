# SPDX-License-Identifier: Apache-2.0
"""VMs that have started since watch began.

KVM's directories in debugfs are listed once per interval for all VMs. The name of a new
directory contains the thread that created the VM, and only that thread's process is inspected.
All processes are scanned at longer intervals: to count those that cannot be inspected, and to
find VMs whose creator has ended or that debugfs does not show.
"""

import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from ipitrace.vm import Discovery, VirtualMachine, discover, process_of, vm_directory_names

_WHOLE_EVERY: Final = 500  # times the CPU time of a scan of all processes: 0.2 %
_NEW_EVERY: Final = 50  # times the CPU time of a check of new VMs
_FIRST_WHOLE_S: Final = 2.0  # if debugfs does not show VMs
_WHOLE_S: Final = 60.0  # if debugfs shows VMs
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 300.0
_PATIENCE_S: Final = 8.0  # for vCPUs that have not run: a VMM creates them one after another


@dataclass
class _Waiting:
    """A new VM some of whose vCPUs have not run yet."""

    since_s: float
    wait_s: float
    next_s: float


class Arrivals:
    """Searches for VMs that are not watched yet."""

    def __init__(self) -> None:
        self._waiting: dict[str, _Waiting] = {}
        self._rest_until_s = 0.0
        shown = vm_directory_names() is not None
        self._whole_at_s = time.monotonic() + (_WHOLE_S if shown else _FIRST_WHOLE_S)
        self.discovery: Discovery | None = None
        """The last scan of all processes."""

    def search(
        self, known: Collection[str], there: frozenset[str] | None
    ) -> tuple[VirtualMachine, ...]:
        """VMs to watch from now on; some of them may already be watched.

        `known` are the directory names of the watched VMs, `there` those that debugfs has now.
        """
        began_s, began_cpu_s = time.monotonic(), time.thread_time()
        if began_s >= self._whole_at_s:
            return self._scan_all(began_s)
        if began_s < self._rest_until_s:
            return ()
        new = (there or frozenset()).difference(known)
        self._waiting = {name: wait for name, wait in self._waiting.items() if name in new}
        due = {n for n in new if n not in self._waiting or self._waiting[n].next_s <= began_s}
        creators = {process_of(int(name.partition("-")[0])) for name in due}
        pids = {pid for pid in creators if pid is not None}
        # The search does not wait for VM entries: the directories name the threads.
        found = discover(entry_reader=dict, only=pids).vms if pids else ()
        ready = {vm.directory: vm for vm in found if vm.directory in due}
        for name in due:
            if not self._is_ready(name, ready.get(name), began_s):
                ready.pop(name, None)
        if due:
            cost_s = time.thread_time() - began_cpu_s
            self._rest_until_s = time.monotonic() + _NEW_EVERY * cost_s
        return tuple(ready.values())

    def _scan_all(self, began_s: float) -> tuple[VirtualMachine, ...]:
        began_cpu_s = time.thread_time()
        self.discovery = discover()
        cost_s = time.thread_time() - began_cpu_s
        least_s = _WHOLE_S if self.discovery.debugfs_absent is None else 0.0
        self._whole_at_s = time.monotonic() + max(_WHOLE_EVERY * cost_s, least_s)
        return tuple(
            vm
            for vm in self.discovery.vms
            if vm.directory is None or self._is_ready(vm.directory, vm, began_s)
        )

    def _is_ready(self, name: str, vm: VirtualMachine | None, now_s: float) -> bool:
        """Whether all vCPUs of the VM have run, or the time to wait for that is over.

        Each call doubles the time until the next check of the VM. A VM that is watched by then
        is not checked again.
        """
        waiting = self._waiting.setdefault(name, _Waiting(now_s, _FIRST_WAIT_S, now_s))
        waiting.next_s = now_s + waiting.wait_s
        waiting.wait_s = min(2 * waiting.wait_s, _LONGEST_WAIT_S)
        if vm is not None and vm.vcpus and len(vm.tids) == len(vm.vcpus):
            return True
        return vm is not None and now_s - waiting.since_s >= _PATIENCE_S
