# SPDX-License-Identifier: Apache-2.0
"""The watched VMs and their slots."""

import resource
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from ipitrace.base.units import NS_PER_S
from ipitrace.tracer.counting import Claim, Counting
from ipitrace.vm import VirtualMachine
from ipitrace.watch.model import MOST_CLAIMS, VmInterval
from ipitrace.watch.processors import Processors

_FEWEST_SLOTS: Final = 256  # if all VMs are watched: others may start later
_FEWEST_CELLS, _MOST_CELLS = 256, 4096
_CELLS_PER_VCPU: Final = 8  # a few vectors and paths for each target


def slots_for(n_vcpus: int, *, all_vms: bool) -> int:
    """The number of slots to allocate; if all VMs are watched, with those for claims."""
    return max(_FEWEST_SLOTS, 2 * n_vcpus) + MOST_CLAIMS if all_vms else max(n_vcpus, 1)


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
        claims: its threads, if they ended before the VM was examined; `vcpus` are thread ids then.
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
    claims: tuple[Claim, ...] = ()

    @property
    def called(self) -> str:
        """Its name and process; without an examination, also the name of a thread."""
        comm = f", {self.claims[0].comm}" if self.claims else ""
        return f"{self.vm.name} (pid {self.vm.pid}{comm})"


class Roster:
    """Assigns slots to vCPUs and frees them."""

    def __init__(self, counting: Counting) -> None:
        self._counting = counting
        self._free = list(range(counting.n_slots - 1, -1, -1))
        self._resting: list[int] = []
        self._offered: set[int] = set()  # slots that vCPU threads may take by themselves
        self._claims: dict[int, Claim] = {}  # slots that were taken, whose VM is not watched yet
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
        self.offer()

    def offer(self) -> None:
        """Offer up to MOST_CLAIMS slots to vCPU threads that are not watched yet.

        _FEWEST_SLOTS remain for the VMs that are found, or half of the free slots.
        """
        if not self._counting.lets_claim:
            return
        for slot in self._counting.claimed():
            if slot in self._offered:
                self._offered.remove(slot)
                self._claims[slot] = self._counting.claim(slot)
        n_free = len(self._free) + len(self._offered)
        wanted = min(MOST_CLAIMS, max(n_free - _FEWEST_SLOTS, n_free // 2))
        while len(self._offered) < wanted and self._free:
            slot = self._free.pop()
            self._counting.offer(slot)
            self._offered.add(slot)

    @property
    def claims(self) -> Collection[Claim]:
        """The slots that threads have taken whose VM is not watched, as of the last offer()."""
        return self._claims.values()

    def add(self, vm: VirtualMachine) -> WatchedVm:
        """Watch `vm`, as far as slots are available.

        A thread that has taken a slot keeps it, with its counts. A thread has one slot. If it was
        the vCPU thread of another VM before, it counts from now on for this VM only.
        """
        slots: list[int] = []
        vcpus: list[int] = []
        tids: list[int] = []
        unwatched: list[int] = []
        since_s = time.monotonic()
        for vcpu in vm.vcpus:
            slot = None if vcpu.tid is None or vcpu.tid in tids else self._slot_for(vcpu.tid)
            if vcpu.tid is None or slot is None:
                unwatched.append(vcpu.index)
                continue
            self._slot_of_tid[vcpu.tid] = slot
            claim = self._claims.pop(slot, None)
            since_s = since_s if claim is None else min(since_s, claim.since_ns / NS_PER_S)
            slots.append(slot)
            vcpus.append(vcpu.index)
            tids.append(vcpu.tid)
        processors = Processors(vm.pid, tids, self._files_left)
        return self._watch(
            WatchedVm(
                vm, tuple(slots), tuple(vcpus), tuple(tids), tuple(unwatched), processors, since_s
            )
        )

    def add_ended(self, vm: VirtualMachine, claims: tuple[Claim, ...]) -> WatchedVm:
        """Add a VM whose threads ended before it was examined: its senders are thread ids."""
        slots = tuple(claim.slot for claim in claims)
        tids = tuple(claim.tid for claim in claims)
        for claim in claims:
            del self._claims[claim.slot]
        self._slot_of_tid.update(zip(tids, slots, strict=True))
        since_s = min(claim.since_ns for claim in claims) / NS_PER_S
        none = Processors(vm.pid, (), 0)
        return self._watch(WatchedVm(vm, slots, tids, tids, (), none, since_s, claims=claims))

    def _watch(self, watched: WatchedVm) -> WatchedVm:
        self._files_left -= watched.processors.n_files
        self._owner.update(dict.fromkeys(watched.slots, watched))
        self.watched.append(watched)
        return watched

    def _slot_for(self, tid: int) -> int | None:
        """The slot in which the thread's events are counted from now on; None if none is free."""
        held = self._counting.slot_of(tid)
        if held is not None and held not in self._owner:
            self._offered.discard(held)
            return held
        if not self._free:
            return None
        if held is not None:
            self._lose_thread(tid)
            self._counting.take(tid)
        slot = self._free.pop()
        given = self._counting.give(slot, tid)
        if given != slot:  # the thread has just taken that one
            self._free.append(slot)
            self._offered.discard(given)
        return given

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
        """The threads that are counted."""
        claiming = {claim.tid for claim in self._claims.values()}
        return claiming.union(*(watched.tids for watched in self.watched))

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
