# SPDX-License-Identifier: Apache-2.0
"""The watched VMs and their slots."""

import resource
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from ipitrace.tracer.counting import Counting
from ipitrace.vm import VirtualMachine
from ipitrace.watch.model import VmInterval
from ipitrace.watch.processors import Processors

_FEWEST_SLOTS: Final = 256  # if all VMs are watched: others may start later
_FEWEST_CELLS, _MOST_CELLS = 256, 4096
_CELLS_PER_VCPU: Final = 8  # a few vectors and paths for each target


def slots_for(n_vcpus: int, *, all_vms: bool) -> int:
    """The number of slots to allocate."""
    return max(_FEWEST_SLOTS, 2 * n_vcpus) if all_vms else max(n_vcpus, 1)


def cells_for(n_vcpus: int) -> int:
    """The number of cells for each vCPU of a VM of this size, a power of two; 16 bytes each."""
    wanted = _FEWEST_CELLS + _CELLS_PER_VCPU * n_vcpus
    return min(1 << (wanted - 1).bit_length(), _MOST_CELLS)


@dataclass(eq=False)
class WatchedVm:
    """One watched VM.

    Attributes:
        slots: by the position of the vCPU in `vcpus`.
        vcpus: KVM's ids of the vCPUs whose thread is known.
        processors: reads the CPUs of the threads.
        exits_first, exits_former: KVM's own exit counters at the first and the last reading,
            kept only if kvm_exit does not fire; exits_absent is the reason if there are none.
        cpus_former: the CPUs of the threads at the last reading.
        shown: the last output for the VM, if nothing was counted in the interval before.
    """

    vm: VirtualMachine
    slots: tuple[int, ...]
    vcpus: tuple[int, ...]
    tids: tuple[int, ...]
    unwatched: tuple[int, ...]
    processors: Processors
    since_s: float
    exits_first: Mapping[str, int] | None = None
    exits_former: Mapping[str, int] | None = None
    exits_absent: str | None = None
    cpus_former: set[int] = field(default_factory=set)
    shown: VmInterval | None = None


class Roster:
    """Assigns slots to vCPUs and frees them."""

    def __init__(self, counting: Counting) -> None:
        self._counting = counting
        self._free = list(range(counting.n_slots - 1, -1, -1))
        self._resting: list[int] = []
        self._owner: dict[int, WatchedVm] = {}
        self._slot_of_tid: dict[int, int] = {}
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._files_left = soft // 4  # other users of descriptors need some, too
        self.watched: list[WatchedVm] = []

    def settle(self) -> None:
        """Make slots that were freed before available again; call it once per interval.

        Until then, programs that were still using such a slot have ended.
        """
        self._free += self._resting
        self._resting = []

    def add(self, vm: VirtualMachine) -> WatchedVm:
        """Watch `vm`, as far as slots are available.

        A thread has one slot. If it was the vCPU thread of another VM before, it counts from now
        on for this VM only.
        """
        slots: list[int] = []
        vcpus: list[int] = []
        tids: list[int] = []
        unwatched: list[int] = []
        for vcpu in vm.vcpus:
            if vcpu.tid is None or vcpu.tid in tids or not self._free:
                unwatched.append(vcpu.index)
                continue
            slot = self._free.pop()
            self._lose_thread(vcpu.tid)
            self._counting.give(slot, vcpu.tid)
            self._slot_of_tid[vcpu.tid] = slot
            slots.append(slot)
            vcpus.append(vcpu.index)
            tids.append(vcpu.tid)
        watched = WatchedVm(
            vm,
            tuple(slots),
            tuple(vcpus),
            tuple(tids),
            tuple(unwatched),
            Processors(vm.pid, tids, self._files_left),
            time.monotonic(),
        )
        self._files_left -= watched.processors.n_files
        self._owner.update(dict.fromkeys(slots, watched))
        self.watched.append(watched)
        return watched

    def _lose_thread(self, tid: int) -> None:
        """Mark this thread as unwatched in the VM that had it so far."""
        slot = self._slot_of_tid.get(tid)
        if slot is not None:
            former = self._owner[slot]
            former.unwatched += (former.vcpus[former.slots.index(slot)],)
            former.shown = None

    def remove(self, watched: WatchedVm) -> None:
        """Stop watching it."""
        for tid, slot in zip(watched.tids, watched.slots, strict=True):
            if self._slot_of_tid.get(tid) == slot:  # else another VM has the thread
                self._counting.take(tid)
                del self._slot_of_tid[tid]
        for slot in watched.slots:
            del self._owner[slot]
        self._resting += watched.slots
        self._files_left += watched.processors.n_files
        watched.processors.close()
        self.watched.remove(watched)

    def owners(self, slots: Iterable[int]) -> set[WatchedVm]:
        """The VMs to which these slots belong."""
        return {self._owner[slot] for slot in slots if slot in self._owner}

    def tids(self) -> set[int]:
        """The threads that are watched."""
        return {tid for watched in self.watched for tid in watched.tids}

    def without_directory(self, there: frozenset[str] | None) -> list[WatchedVm]:
        """The VMs whose directory in debugfs is no longer in `there`."""
        if there is None:
            return []
        return [w for w in self.watched if w.vm.directory and w.vm.directory not in there]

    def close(self) -> None:
        """Close the files."""
        for watched in self.watched:
            watched.processors.close()

    def strangers(self, vms: Collection[VirtualMachine]) -> Sequence[VirtualMachine]:
        """The VMs of `vms` that are not watched yet."""
        known = {_identity(w.vm) for w in self.watched} if vms else set()
        return [vm for vm in vms if _identity(vm) not in known]


def _identity(vm: VirtualMachine) -> tuple[object, ...]:
    return vm.pid, vm.started_at_ticks, vm.vm_fd
