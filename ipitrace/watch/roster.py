# SPDX-License-Identifier: Apache-2.0
"""Which VMs are watched, and in which slots."""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ipitrace.tracer.counting import Counting, Counts
from ipitrace.vm import VirtualMachine
from ipitrace.watch.model import VmInterval

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
class Watched:
    """One VM that is watched.

    Attributes:
        slots: by the position of the vCPU in `vcpus`; `slot_array` for NumPy.
        vcpus: KVM's ids of those whose thread is known.
        former: the last reading; all zeros at first.
        exits_first, exits_former: KVM's own exit counters at the first and the last reading,
            kept only where kvm_exit does not fire.
        cpus_former: the CPUs that its threads were on at the last reading.
        activity: what Counting.activity() said of its slots at the last reading.
        still: nothing was counted from the last reading but one to the last.
        shown: what was told of it last, while it is still.
    """

    vm: VirtualMachine
    slots: tuple[int, ...]
    slot_array: NDArray[np.intp]
    vcpus: tuple[int, ...]
    tids: tuple[int, ...]
    unwatched: tuple[int, ...]
    former: Counts
    since_s: float
    exits_first: Mapping[str, int] | None = None
    exits_former: Mapping[str, int] | None = None
    cpus_former: set[int] = field(default_factory=set)
    activity: int | None = None
    still: bool = False
    shown: VmInterval | None = None


class Roster:
    """Gives vCPUs slots and takes them back."""

    def __init__(self, counting: Counting) -> None:
        self._counting = counting
        self._free = list(range(counting.n_slots - 1, -1, -1))
        self._resting: list[int] = []
        self.watched: list[Watched] = []

    def settle(self) -> None:
        """Slots freed before this are free now; call it once an interval.

        In between, programs that had found such a slot have long ended.
        """
        self._free += self._resting
        self._resting = []

    def add(self, vm: VirtualMachine) -> Watched:
        """Watch `vm`, as far as there is room."""
        slots: list[int] = []
        vcpus: list[int] = []
        tids: list[int] = []
        unwatched: list[int] = []
        for vcpu in vm.vcpus:
            if vcpu.tid is None or not self._free:
                unwatched.append(vcpu.index)
                continue
            slot = self._free.pop()
            self._counting.give(slot, vcpu.tid)
            slots.append(slot)
            vcpus.append(vcpu.index)
            tids.append(vcpu.tid)
        watched = Watched(
            vm,
            tuple(slots),
            np.array(slots, np.intp),
            tuple(vcpus),
            tuple(tids),
            tuple(unwatched),
            self._counting.zeros(len(slots)),
            time.monotonic(),
        )
        self.watched.append(watched)
        return watched

    def remove(self, watched: Watched) -> None:
        """Watch it no longer."""
        for tid in watched.tids:
            self._counting.take(tid)
        self._resting += watched.slots
        self.watched.remove(watched)

    def strangers(self, vms: Collection[VirtualMachine]) -> Sequence[VirtualMachine]:
        """Those of `vms` that are not watched yet."""
        known = {_identity(w.vm) for w in self.watched} if vms else set()
        return [vm for vm in vms if _identity(vm) not in known]


def _identity(vm: VirtualMachine) -> tuple[object, ...]:
    return vm.pid, vm.started_at_ticks, vm.vm_fd
