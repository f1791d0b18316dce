# SPDX-License-Identifier: Apache-2.0
"""Watches one VM, or all VMs, interval by interval."""

import os
import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final, Self

import numpy as np

from ipitrace.host.access import allow_many_descriptors
from ipitrace.host.files import HOST
from ipitrace.host.fingerprint import read_fingerprint
from ipitrace.host.interrupts import read_interrupts
from ipitrace.tracer.counting import Counting, Counts
from ipitrace.tracer.kernel import host_isa
from ipitrace.tracer.tracefs import ensure_debugfs
from ipitrace.vm import Discovery, VirtualMachine, changes, still_there, vm_directory_names
from ipitrace.watch.arrivals import Arrivals
from ipitrace.watch.claims import EndedClaims, ended_vm, why_ended
from ipitrace.watch.ended import Ended, largest
from ipitrace.watch.evidence import ExitEvidence
from ipitrace.watch.late_posts import late_posts
from ipitrace.watch.mechanisms import SHOW_SENDS, Facts
from ipitrace.watch.model import (
    MOST_ENDED_PAIRS,
    MOST_STRANGERS,
    SCHEMA_VERSION,
    Count,
    EndedVm,
    ExitsOfReason,
    OwnCost,
    Pending,
    Sight,
    VmExits,
    VmInterval,
    WatchInterval,
)
from ipitrace.watch.presence import Presence
from ipitrace.watch.roster import Roster, WatchedVm, cells_for, slots_for
from ipitrace.watch.traffic import Traffic, has_exits, traffic
from ipitrace.watch.unseen import Strangers
from ipitrace.watch.visibility import hint, visibility
from ipitrace.watch.vm_stats import SOURCE, read_vm_exits

_LARGE_VM: Final = 64  # vCPUs to expect of a VM that starts later
_ENDED: Final = "VMs that have ended"
_PAGE: Final = 4096
_PV_TLB_FLUSH: Final = "kvm_pv_tlb_flush"


class Watcher:
    """Counts from open() to close(); a context manager."""

    def __init__(self, counting: Counting, *, all_vms: bool, top: int, sight: Sight) -> None:
        """Use open()."""
        self._counting, self._all_vms, self._top = counting, all_vms, top
        self._roster = Roster(counting)
        # If all VMs are watched, a vCPU that begins to run is added; a single VM keeps its vCPUs.
        self._presence: Presence[WatchedVm] = Presence(changes if all_vms else still_there)
        self._arrivals = Arrivals()
        self._sight = sight
        self._fingerprint = read_fingerprint()
        self._hint = hint(self._fingerprint.kvm_backend, self._fingerprint.kvm_parameters)
        self._isa = host_isa()
        self._number = 0
        self._departed = self._departed_vms = 0
        self._ended = Ended()
        self._strangers = Strangers()
        self._ended_claims = EndedClaims()
        self._activity = counting.activity()
        self._events = frozenset(counting.hooks)
        self._exit_evidence = ExitEvidence(self._isa)
        self._skipped: Mapping[str, int | None] = {}
        self._began_s = self._former_s = time.monotonic()
        self._began_cpu_s = self._former_cpu_s = time.process_time()
        self._first_posts = self._posts = read_interrupts()
        self._cpus: dict[int, set[str]] = {}
        self._stopped: str | None = None

    @classmethod
    def open(cls, found: Discovery, vm: VirtualMachine | None, *, top: int) -> Self:
        """Watch `vm`, or all present and future VMs; list `top` pairs of each (0: all).

        Args:
            found: the current result of discover().
            vm: one of these VMs; None for all.
            top: the number of pairs to list.

        Raises:
            HostError: BPF cannot be used, or this kernel's KVM has no tracepoints of IPIs.
        """
        vms = found.vms if vm is None else (vm,)
        sizes = [len(one.vcpus) for one in vms]
        largest = max(sizes, default=0)
        if vm is None:
            ensure_debugfs()  # debugfs shows VMs that start later
            allow_many_descriptors()
        counting = Counting.load(
            n_slots=slots_for(sum(sizes), all_vms=vm is None),
            n_cells=cells_for(max(largest, _LARGE_VM) if vm is None else largest),
            n_strangers=MOST_STRANGERS if vm is None else 0,
        )
        watcher = cls(counting, all_vms=vm is None, top=top, sight=sight_of(found))
        for one in vms:
            watcher._add_vm(one)
        watcher._roster.offer()
        # Threads that ran before that may take a slot only when they are no longer noted.
        watcher._strangers.update(counting.strangers(), watcher._roster.tids)
        return watcher

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def left_out(self) -> Mapping[str, str]:
        """The events that cannot be watched on this kernel, with the reason."""
        return self._counting.left_out

    def sample(self) -> WatchInterval:
        """The counts since the last call.

        `stopped` is set if the watched VM has ended; the interval still contains the counts
        until then.
        """
        self._roster.settle()
        self._skipped = self._counting.recursion_misses()
        now_s, cpu_s = time.monotonic(), time.process_time()
        posts = read_interrupts()
        vms_on: dict[int, set[str]] = {}
        lost: list[tuple[WatchedVm, str]] = []
        vms = []
        # KVM removes a VM's directory with the VM, even if the process continues.
        there = vm_directory_names() if self._all_vms else None
        gone = self._presence.gone(self._roster.without_directory(there))
        activity = self._counting.activity()
        active = self._roster.owners(np.flatnonzero(activity != self._activity).tolist())
        self._activity = activity
        self._exit_evidence.note(int(activity.sum()))
        # A program first counts the event and then its details. A VM's tables are therefore read
        # once more after the last event.
        to_read = [w for w in self._roster.watched if w in active or w.shown is None]
        slots = [slot for watched in to_read for slot in watched.slots]
        read = dict(zip(to_read, self._traffic(to_read, self._counting.read(slots)), strict=True))
        for watched in tuple(self._roster.watched):
            done = read.get(watched)
            now_on = watched.processors.now()
            # Only changes of the CPU are counted; a thread begins on its last CPU.
            cpus = now_on | watched.cpus_former
            if done is not None:
                cpus |= done.cpus()
            watched.cpus_former = now_on
            for cpu in cpus:
                vms_on.setdefault(cpu, set()).add(watched.vm.name)
                self._cpus.setdefault(cpu, set()).add(watched.vm.name)
            shown = self._shown(watched, done, now_s, cpus)
            watched.shown = None if watched in active else shown
            vms.append(shown)
            why = gone.get(watched)
            if why is not None:
                lost.append((watched, why))
        lost += self._ended_unexamined(vms_on)
        ended = [f"{watched.called}: {why}" for watched, why in lost]
        # Before ended VMs are removed: their threads were watched.
        unseen = self._strangers.update(self._counting.strangers(), self._roster.tids)
        listed, rest = largest(self._lose(lost, now_s))
        interval = WatchInterval(
            SCHEMA_VERSION,
            self._number,
            _time(),
            now_s - self._former_s,
            now_s - self._began_s,
            tuple(vms),
            late_posts(self._posts, posts, vms_on, self._may_run),
            _own(cpu_s - self._former_cpu_s, now_s - self._former_s),
            self._recursion_misses(),
            tuple(ended),
            self._departed,
            self._stopped,
            self._sight,
            listed,
            rest,
            unseen,
            self._pending(),
            self._departed_vms,
        )
        self._number += 1
        self._former_s, self._former_cpu_s, self._posts = now_s, cpu_s, posts
        if self._all_vms:
            self._add_new_vms(there)
        return interval

    def _shown(
        self, watched: WatchedVm, done: Traffic | None, now_s: float, cpus: set[int]
    ) -> VmInterval:
        """The VM in this interval; if it was idle, the last output, updated."""
        if done is not None:
            before = watched.exits_former
            return self._vm_interval(watched, done, now_s, cpus, before, top=self._top)
        if watched.shown is None:
            raise ValueError("a VM without earlier output was not read")
        exits = watched.shown.exits
        if exits.source == SOURCE:  # KVM counts exits without an event
            exits = self._exits_of_statistics(watched, watched.exits_former, exits)
        on, watched_s = tuple(sorted(cpus)), now_s - watched.since_s
        return replace(watched.shown, exits=exits, cpus=on, watched_s=watched_s)

    def summary(self) -> WatchInterval:
        """The whole run as one interval, until the last sample."""
        vms = []
        all_watched = self._roster.watched
        slots = [slot for watched in all_watched for slot in watched.slots]
        whole = self._traffic(all_watched, self._counting.as_read(slots))
        for watched, done in zip(all_watched, whole, strict=True):
            cpus = {cpu for cpu, names in self._cpus.items() if watched.vm.name in names}
            before = watched.exits_first
            vms.append(
                self._vm_interval(watched, done, self._former_s, cpus, before, top=self._top)
            )
        return WatchInterval(
            SCHEMA_VERSION,
            None,
            _time(),
            self._former_s - self._began_s,
            self._former_s - self._began_s,
            tuple(vms),
            late_posts(self._first_posts, self._posts, self._cpus, self._may_run),
            _own(time.process_time() - self._began_cpu_s, time.monotonic() - self._began_s),
            self._recursion_misses(),
            (),
            self._departed,
            self._stopped,
            self._sight,
            self._ended.kept,
            self._ended.rest,
            self._strangers.whole(),
            self._pending(),
            self._departed_vms,
        )

    def close(self) -> None:
        """Detach and free everything."""
        self._presence.close()
        self._roster.close()
        self._counting.close()

    def _add_vm(self, vm: VirtualMachine) -> None:
        watched = self._roster.add(vm)
        self._activity[list(watched.slots)] = 0  # another VM may have used the slots
        self._presence.add(watched, vm)

    def _ended_unexamined(self, vms_on: dict[int, set[str]]) -> list[tuple[WatchedVm, str]]:
        """VMs whose vCPU threads have ended before the VM was examined, with the reason.

        Adds the CPUs of the threads to `vms_on`.
        """
        groups = self._ended_claims.of(self._roster.claims)
        if not groups:
            return []
        found = [(self._roster.add_ended(ended_vm(c), c), why_ended(c)) for c in groups]
        of = [watched for watched, _ in found]
        counts = self._counting.read([slot for watched in of for slot in watched.slots])
        for watched, done in zip(of, self._traffic(of, counts), strict=True):
            for cpu in done.cpus():
                vms_on.setdefault(cpu, set()).add(watched.vm.name)
                self._cpus.setdefault(cpu, set()).add(watched.vm.name)
        return found

    def _pending(self) -> Pending:
        claims = self._roster.claims
        return Pending(len(claims), self._counting.sends([claim.slot for claim in claims]))

    def _lose(self, lost: Collection[tuple[WatchedVm, str]], now_s: float) -> list[EndedVm]:
        """Handle VMs that have ended: a single VM is kept, others are removed.

        Returns the counts of the removed VMs at the last reading; those of the largest are kept.
        """
        if not self._all_vms:
            self._stopped = next((why for _, why in lost), self._stopped)
            return []
        if not lost:
            return []
        of = [watched for watched, _ in lost]
        whole = self._traffic(of, self._counting.as_read([s for w in of for s in w.slots]))
        ended = []
        for (watched, why), done in zip(lost, whole, strict=True):
            name = watched.vm.name
            cpus = {cpu for cpu, names in self._cpus.items() if name in names}
            top = min(self._top or MOST_ENDED_PAIRS, MOST_ENDED_PAIRS)
            vm = self._vm_interval(watched, done, now_s, cpus, watched.exits_first, top=top)
            if watched.claims:
                vm = replace(vm, vcpus=())
                ended.append(EndedVm(vm, why, watched.claims[0].comm, watched.tids))
            else:
                ended.append(EndedVm(vm, why))
                self._presence.remove(watched)
            self._departed += vm.ipis.total
            self._departed_vms += 1
            self._roster.remove(watched)
            for cpu in cpus:  # else the names would accumulate
                self._cpus[cpu].discard(name)  # another VM may have the same name
                self._cpus[cpu].add(_ENDED)
        self._ended.add(ended)
        return ended

    def _add_new_vms(self, there: frozenset[str] | None) -> None:
        """Begin to watch VMs that have started."""
        known = {w.vm.directory for w in self._roster.watched if w.vm.directory is not None}
        for vm in self._roster.strangers(self._arrivals.search(known, there)):
            self._add_vm(vm)
        if self._arrivals.discovery is not None:
            self._sight = sight_of(self._arrivals.discovery)

    def _may_run(self, cpus: Collection[int]) -> dict[int, set[str]]:
        """CPU of `cpus` to the watched VMs of which a vCPU thread may run on it."""
        found: dict[int, set[str]] = {}
        wanted = set(cpus)
        for watched in self._roster.watched:
            for tid in watched.tids:
                for cpu in wanted & _allowed_cpus(tid):
                    found.setdefault(cpu, set()).add(watched.vm.name)
        return found

    def _traffic(self, of: Collection[WatchedVm], counts: Counts) -> list[Traffic]:
        """The traffic of these VMs, from the counts of their slots."""
        vcpus = [watched.vcpus for watched in of]
        if not self._exit_evidence.fired:
            self._exit_evidence.fired = has_exits(counts)
        return traffic(counts, vcpus, exits_silent=self._exits_silent)

    @property
    def _exits_silent(self) -> bool:
        return "kvm_exit" in self._events and self._exit_evidence.silent

    def _vm_interval(
        self,
        watched: WatchedVm,
        done: Traffic,
        now_s: float,
        cpus: set[int],
        exits_before: Mapping[str, int] | None,
        *,
        top: int,
    ) -> VmInterval:
        pairs, left_out = done.pairs(top)
        return VmInterval(
            name=watched.vm.name,
            pid=watched.vm.pid,
            vcpus=done.vcpus(),
            visibility=visibility(self._facts(watched, done), self._hint),
            sends=done.head("sends"),
            ipis=done.ipis(),
            pairs=pairs,
            pairs_left_out=left_out,
            kinds=done.kinds(),
            exits=self._exits(watched, done, exits_before),
            wakeups=done.head("wakeups"),
            waited=done.head("waited"),
            others=done.others(),
            unplaced=done.unplaced(),
            missed=done.head("missed"),
            events=done.head("events"),
            cpus=tuple(sorted(cpus)),
            watched_s=now_s - watched.since_s,
            unwatched=watched.unwatched,
            uid=watched.vm.uid,
            pv_tlb_flushes=done.head("pv_tlb_flushes") if _PV_TLB_FLUSH in self._events else None,
        )

    def _facts(self, watched: WatchedVm, done: Traffic) -> Facts:
        """What is known about the VM's ways of sending."""
        reasons = done.exits()
        return Facts(
            accepted=done.head("fixed", 0).total + done.head("fixed", 1).total,
            taken=done.head("apicv", 0).total + done.head("apicv", 1).total,
            hooks=self._events,
            isa=self._isa,
            backend=self._fingerprint.kvm_backend,
            parameters=self._fingerprint.kvm_parameters,
            exit_reasons=frozenset(row.reason for row in reasons) if reasons else None,
            xen_hypercalls=done.head("xen_hypercalls").total,
            confidential=watched.vm.confidential is not None,
            unwatched=len(watched.unwatched),
            missed=done.head("missed").total,
            skipped=sum(self._skipped.get(name) or 0 for name in SHOW_SENDS),
        )

    def _exits(
        self, watched: WatchedVm, done: Traffic, before: Mapping[str, int] | None
    ) -> VmExits:
        """Exits from kvm_exit if it fires, else from KVM's statistics, else the reason."""
        reasons = done.exits()
        if reasons:
            return VmExits("kvm_exit", reasons, None)
        why = self._counting.left_out.get("kvm_exit")
        if why is None and not done.head("events").total:
            return VmExits(None, None, "no event of this VM was seen yet")
        if why is None and not self._exits_silent:
            return VmExits(None, None, "no exit of this VM was seen yet")
        why = f"kvm_exit cannot be watched ({why})" if why else "kvm_exit does not fire on this KVM"
        return self._exits_of_statistics(watched, before, VmExits(None, None, why))

    def _exits_of_statistics(
        self, watched: WatchedVm, before: Mapping[str, int] | None, absent: VmExits
    ) -> VmExits:
        """Exits from KVM's own counters; `absent` is the reason to use them."""
        found = watched.exits_absent or read_vm_exits(watched.vm.directory)
        if isinstance(found, str):
            watched.exits_absent = found  # this will not change on this kernel
            return VmExits(None, None, f"{absent.absent or SOURCE}, and {found}")
        watched.exits_first = watched.exits_first or found
        watched.exits_former = found
        first, before = watched.exits_first, before or found
        rows = [
            ExitsOfReason(
                name, Count(value - before.get(name, value), value - first.get(name, value))
            )
            for name, value in found.items()
        ]
        rows.sort(key=lambda row: (-row.exits.delta, row.reason))
        return VmExits(SOURCE, tuple(rows), None)

    def _recursion_misses(self) -> int | None:
        known = [n for n in self._skipped.values() if n is not None]
        return sum(known) if known else None


def _allowed_cpus(tid: int) -> set[int]:
    try:
        return os.sched_getaffinity(tid)
    except ProcessLookupError:
        return set()


def sight_of(found: Discovery) -> Sight:
    """What a scan of all processes could not see."""
    return Sight(
        found.unreadable_processes,
        found.unlisted,
        found.missing,
        tuple(odd.says for odd in found.odd),
    )


def _own(cpu_s: float, duration_s: float) -> OwnCost:
    pages = (HOST.text("/proc/self/statm") or "0 0").split()[1]
    return OwnCost(cpu_s / duration_s if duration_s > 0 else 0.0, int(pages) * _PAGE)


def _time() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
