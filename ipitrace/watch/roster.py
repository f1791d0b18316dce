# SPDX-License-Identifier: Apache-2.0
"""Which VMs are watched, and in which slots."""

import resource
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from ipitrace.tracer.counting import Counting
from ipitrace.vm import VirtualMachine
from ipitrace.watch.model import VmInterval
from ipitrace.watch.processors import Processors

_FEWEST_SLOTS: Final = 256  # when all VMs are watched: others may start later
_FEWEST_CELLS, _MOST_CELLS = 256, 4096
_CELLS_PER_VCPU: Final = 8  # a few vectors and paths for each target


def slots_for(n_vcpus: int, *, all_vms: bool) -> int:
    """How many vCPUs there must be room for."""
    return max(_FEWEST_SLOTS, 2 * n_vcpus) if all_vms else max(n_vcpus, 1)


def cells_for(n_vcpus: int) -> int:
    """Cells for each vCPU of a VM of that size, a power of two; 16 bytes each."""
    wanted = _FEWEST_CELLS + _CELLS_PER_VCPU * n_vcpus
    return min(1 << (wanted - 1).bit_length(), _MOST_CELLS)


@dataclass(eq=False)
class WatchedVm:
    """One VM that is watched.

    Attributes:
        slots: by the position of the vCPU in `vcpus`.
        vcpus: KVM's ids of those whose thread is known.
        processors: answers where its threads are.
        exits_first, exits_former: KVM's own exit counters at the first and the last reading,
            kept only where kvm_exit does not fire; exits_absent says why there are none.
        cpus_former: the CPUs that its threads were on at the last reading.
        shown: what was told of it last, if nothing was counted in the interval before.
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
    """Gives vCPUs slots and takes them back."""

    def __init__(self, counting: Counting) -> None:
        self._counting = counting
        self._free = list(range(counting.n_slots - 1, -1, -1))
        self._resting: list[int] = []
        self._owner: dict[int, WatchedVm] = {}
        self._slot_of_tid: dict[int, int] = {}
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._files_left = soft // 4  # others need some, too
        self.watched: list[WatchedVm] = []

    def settle(self) -> None:
        """Slots freed before this are free now; call it once an interval.

        In between, programs that had found such a slot have long ended.
        """
        self._free += self._resting
        self._resting = []

    def add(self, vm: VirtualMachine) -> WatchedVm:
        """Watch `vm`, as far as there is room.

        A thread has one slot. Where it was seen as another VM's vCPU before, it is that no more,
        or in turn: it counts for the VM that was seen last.
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
        """The VM that has this thread so far is told without it from now on."""
        slot = self._slot_of_tid.get(tid)
        if slot is not None:
            former = self._owner[slot]
            former.unwatched += (former.vcpus[former.slots.index(slot)],)
            former.shown = None

    def remove(self, watched: WatchedVm) -> None:
        """Watch it no longer."""
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
        """The VMs that these slots are of."""
        return {self._owner[slot] for slot in slots if slot in self._owner}

    def tids(self) -> set[int]:
        """The threads that are watched."""
        return {tid for watched in self.watched for tid in watched.tids}

    def without_directory(self, there: frozenset[str] | None) -> list[WatchedVm]:
        """Those that had a directory in debugfs, which is not `there` any more."""
        if there is None:
            return []
        return [w for w in self.watched if w.vm.directory and w.vm.directory not in there]

    def close(self) -> None:
        """Let go of the files."""
        for watched in self.watched:
            watched.processors.close()

    def strangers(self, vms: Collection[VirtualMachine]) -> Sequence[VirtualMachine]:
        """Those of `vms` that are not watched yet."""
        known = {_identity(w.vm) for w in self.watched} if vms else set()
        return [vm for vm in vms if _identity(vm) not in known]


def _identity(vm: VirtualMachine) -> tuple[object, ...]:
    return vm.pid, vm.started_at_ticks, vm.vm_fd
