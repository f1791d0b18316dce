# SPDX-License-Identifier: Apache-2.0
"""Watches one VM, or all there are, interval by interval."""

import os
import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from ipitrace.host.files import HOST
from ipitrace.host.fingerprint import read_fingerprint
from ipitrace.host.interrupts import read_interrupts
from ipitrace.tracer.counting import Counting, Counts
from ipitrace.tracer.tracefs import ensure_debugfs
from ipitrace.vm import Discovery, VirtualMachine, changes, still_there
from ipitrace.watch.arrivals import Arrivals
from ipitrace.watch.late_posts import late_posts
from ipitrace.watch.model import (
    SCHEMA_VERSION,
    Count,
    ExitReason,
    Exits,
    Interval,
    OwnCost,
    Sight,
    VmInterval,
)
from ipitrace.watch.presence import Presence
from ipitrace.watch.roster import Roster, Watched, cells_for, slots_for
from ipitrace.watch.traffic import Traffic
from ipitrace.watch.visibility import hint, visibility
from ipitrace.watch.vm_stats import SOURCE, read_vm_exits

_LARGE_VM: Final = 64  # vCPUs to expect of a VM that starts later
_ENDED: Final = "VMs that have ended"
_PAGE: Final = 4096
_PROCESSOR_FIELD: Final = 36  # of /proc/PID/task/TID/stat, from the state on
_STAT_BYTES: Final = 4096


class Watcher:
    """Counts from open() to close(); a context manager."""

    def __init__(self, counting: Counting, *, all_vms: bool, top: int, sight: Sight) -> None:
        """Use open()."""
        self._counting, self._all_vms, self._top = counting, all_vms, top
        self._roster = Roster(counting)
        # A vCPU that begins to run is taken up where VMs come and go; one VM alone stays as it is.
        self._presence: Presence[Watched] = Presence(changes if all_vms else still_there)
        self._arrivals = Arrivals()
        self._sight = sight
        fingerprint = read_fingerprint()
        self._hint = hint(fingerprint.kvm_backend, fingerprint.kvm_parameters)
        self._number = 0
        self._departed = 0
        self._began_s = self._former_s = time.monotonic()
        self._began_cpu_s = self._former_cpu_s = time.process_time()
        self._first_posts = self._posts = read_interrupts()
        self._cpus: dict[int, set[str]] = {}
        self._stopped: str | None = None

    @classmethod
    def open(cls, found: Discovery, vm: VirtualMachine | None, *, top: int) -> Self:
        """Watch `vm`, or every VM there is and will be; list `top` pairs of each (0: all).

        Args:
            found: what discover() has just found.
            vm: one of those; None for all.
            top: how many pairs to list.

        Raises:
            HostError: BPF cannot be used, or this kernel's KVM has no tracepoints of IPIs.
        """
        vms = found.vms if vm is None else (vm,)
        sizes = [len(one.vcpus) for one in vms]
        largest = max(sizes, default=0)
        if vm is None:
            ensure_debugfs()  # VMs that start later are known from there
        counting = Counting.load(
            n_slots=slots_for(sum(sizes), all_vms=vm is None),
            n_cells=cells_for(max(largest, _LARGE_VM) if vm is None else largest),
        )
        watcher = cls(counting, all_vms=vm is None, top=top, sight=sight_of(found))
        for one in vms:
            watcher._take_up(one)
        return watcher

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def left_out(self) -> Mapping[str, str]:
        """The events that cannot be watched on this kernel, and why."""
        return self._counting.left_out

    def sample(self) -> Interval:
        """What happened since the last call.

        `stopped` says when the VM watched is no longer there; what was counted until then
        is in the interval all the same.
        """
        self._roster.settle()
        now_s, cpu_s = time.monotonic(), time.process_time()
        posts = read_interrupts()
        vms_on: dict[int, set[str]] = {}
        ended: list[str] = []
        vms = []
        gone = self._presence.gone()
        activity = self._counting.activity()
        for watched in tuple(self._roster.watched):
            traffic = self._read(watched, activity)
            now_on = _cpus_now(watched)
            # Only changes of the CPU are counted: it began where the last interval ended.
            cpus = now_on | watched.cpus_former
            if traffic is not None:
                cpus |= traffic.cpus()
            watched.cpus_former = now_on
            for cpu in cpus:
                vms_on.setdefault(cpu, set()).add(watched.vm.name)
                self._cpus.setdefault(cpu, set()).add(watched.vm.name)
            shown = self._shown(watched, traffic, now_s, cpus)
            vms.append(shown)
            why = gone.get(watched)
            if why is not None:
                ended.append(f"{watched.vm.name} (pid {watched.vm.pid}): {why}")
                self._lose(watched, shown, why)
        interval = Interval(
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
        )
        self._number += 1
        self._former_s, self._former_cpu_s, self._posts = now_s, cpu_s, posts
        if self._all_vms:
            self._look_for_vms()
        return interval

    def _read(self, watched: Watched, activity: NDArray[np.uint64]) -> Traffic | None:
        """What its vCPUs did; None when that is nothing, so that its tables need no reading.

        A program counts the event first and then what it is about, so the tables are read
        once more after the last event.
        """
        now = int(activity[watched.slot_array].sum())
        if now == watched.activity and watched.shown is not None:
            return None
        counts = self._counting.read(watched.slots)
        traffic = self._traffic(watched, watched.former, counts)
        watched.shown = None
        watched.still = now == watched.activity
        watched.activity, watched.former = now, counts
        return traffic

    def _shown(
        self, watched: Watched, traffic: Traffic | None, now_s: float, cpus: set[int]
    ) -> VmInterval:
        """The VM in this interval; what was shown last, brought up to date, where it was idle."""
        if traffic is None and watched.shown is not None:
            on = tuple(sorted(cpus))
            exits = watched.shown.exits
            if exits.source == SOURCE:  # KVM counts exits that no event tells of
                exits = self._exits_of_statistics(watched, watched.exits_former, exits)
            return replace(watched.shown, exits=exits, cpus=on, watched_s=now_s - watched.since_s)
        if traffic is None:
            raise ValueError("nothing was read of a VM that was not shown yet")
        shown = self._vm_interval(watched, traffic, now_s, cpus, watched.exits_former)
        watched.shown = shown if watched.still else None
        return shown

    def summary(self) -> Interval:
        """The whole run as one interval: what was sampled last, from the beginning."""
        vms = []
        for watched in self._roster.watched:
            n_slots = len(watched.slots)
            traffic = self._traffic(watched, self._counting.zeros(n_slots), watched.former)
            cpus = {cpu for cpu, names in self._cpus.items() if watched.vm.name in names}
            vms.append(
                self._vm_interval(watched, traffic, self._former_s, cpus, watched.exits_first)
            )
        return Interval(
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
        )

    def close(self) -> None:
        """Detach and free everything."""
        self._presence.close()
        self._counting.close()

    def _take_up(self, vm: VirtualMachine) -> None:
        self._presence.add(self._roster.add(vm), vm)

    def _lose(self, watched: Watched, shown: VmInterval, why: str) -> None:
        """A VM has ended: of the only one keep what it did, of others make room."""
        if self._all_vms:
            self._departed += shown.ipis.total
            self._roster.remove(watched)
            self._presence.remove(watched)
            for names in self._cpus.values():
                if watched.vm.name in names:  # else they would add up for days
                    names.remove(watched.vm.name)
                    names.add(_ENDED)
        else:
            self._stopped = why

    def _look_for_vms(self) -> None:
        """Take up VMs that have started."""
        known = {w.vm.directory for w in self._roster.watched if w.vm.directory is not None}
        for vm in self._roster.strangers(self._arrivals.look(known)):
            self._take_up(vm)
        if self._arrivals.discovery is not None:
            self._sight = sight_of(self._arrivals.discovery)

    def _may_run(self, cpus: Collection[int]) -> dict[int, set[str]]:
        """Those of `cpus` on which a vCPU thread of a watched VM may run, and whose."""
        found: dict[int, set[str]] = {}
        wanted = set(cpus)
        for watched in self._roster.watched:
            for tid in watched.tids:
                for cpu in wanted & _allowed_cpus(tid):
                    found.setdefault(cpu, set()).add(watched.vm.name)
        return found

    def _traffic(self, watched: Watched, before: Counts, after: Counts) -> Traffic:
        return Traffic(
            before, after, watched.vcpus, exits_watched="kvm_exit" in self._counting.hooks
        )

    def _vm_interval(
        self,
        watched: Watched,
        traffic: Traffic,
        now_s: float,
        cpus: set[int],
        exits_before: Mapping[str, int] | None,
    ) -> VmInterval:
        pairs, left_out = traffic.pairs(self._top)
        return VmInterval(
            name=watched.vm.name,
            pid=watched.vm.pid,
            vcpus=traffic.vcpus(),
            visibility=visibility(
                accepted=traffic.head("fixed", 0).total,
                taken=traffic.head("apicv", 0).total,
                others_accepted=traffic.head("fixed", 1).total,
                others_taken=traffic.head("apicv", 1).total,
                watched="kvm_apicv_accept_irq" in self._counting.hooks,
                hint=self._hint,
            ),
            sends=traffic.head("sends"),
            ipis=traffic.ipis(),
            pairs=pairs,
            pairs_left_out=left_out,
            kinds=traffic.kinds(),
            exits=self._exits(watched, traffic, exits_before),
            wakeups=traffic.head("wakeups"),
            waited=traffic.head("waited"),
            others=traffic.others(),
            unplaced=traffic.unplaced(),
            missed=traffic.head("missed"),
            events=traffic.head("events"),
            cpus=tuple(sorted(cpus)),
            watched_s=now_s - watched.since_s,
            unwatched=watched.unwatched,
            uid=watched.vm.uid,
        )

    def _exits(self, watched: Watched, traffic: Traffic, before: Mapping[str, int] | None) -> Exits:
        """Exits from kvm_exit where it fires, else from KVM's statistics, else why not."""
        reasons = traffic.exits()
        if reasons:
            return Exits("kvm_exit", reasons, None)
        why = self._counting.left_out.get("kvm_exit")
        if why is None and not traffic.head("events").total:
            return Exits(None, None, "nothing was seen of this VM yet")
        why = f"kvm_exit cannot be watched ({why})" if why else "kvm_exit does not fire on this KVM"
        return self._exits_of_statistics(watched, before, Exits(None, None, why))

    def _exits_of_statistics(
        self, watched: Watched, before: Mapping[str, int] | None, absent: Exits
    ) -> Exits:
        """From KVM's own counters; `absent` is why they are asked for."""
        found = read_vm_exits(watched.vm.directory)
        if isinstance(found, str):
            return Exits(None, None, f"{absent.absent or SOURCE}, and {found}")
        watched.exits_first = watched.exits_first or found
        watched.exits_former = found
        first, before = watched.exits_first, before or found
        rows = [
            ExitReason(name, Count(value - before.get(name, value), value - first.get(name, value)))
            for name, value in found.items()
        ]
        rows.sort(key=lambda row: (-row.exits.delta, row.reason))
        return Exits(SOURCE, tuple(rows), None)

    def _recursion_misses(self) -> int | None:
        told = [n for n in self._counting.recursion_misses().values() if n is not None]
        return sum(told) if told else None


def _allowed_cpus(tid: int) -> set[int]:
    try:
        return os.sched_getaffinity(tid)
    except ProcessLookupError:
        return set()


def _cpus_now(watched: Watched) -> set[int]:
    """The CPUs that its threads run on, or ran on last."""
    found: set[int] = set()
    for tid in watched.tids:
        text = HOST.text(f"/proc/{watched.vm.pid}/task/{tid}/stat", _STAT_BYTES) or ""
        # The name, in parentheses, may hold anything.
        fields = text.rpartition(")")[2].split(None, _PROCESSOR_FIELD + 1)
        if len(fields) > _PROCESSOR_FIELD:
            found.add(int(fields[_PROCESSOR_FIELD]))
    return found


def sight_of(found: Discovery) -> Sight:
    """What a look at all processes left unseen."""
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
