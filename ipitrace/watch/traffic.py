# SPDX-License-Identifier: Apache-2.0
"""Converts cells and heads to IPIs by sender and target: pure functions.

All VMs are processed together: NumPy takes as long for one VM as for many small ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ipitrace.abi.watch import WATCH_KEY, WATCH_TARGET_UNKNOWN, SentBy, What
from ipitrace.correlate.paths import INFO_OF_ICR_WRITE, path_of_avic_cause, path_of_exits
from ipitrace.tracer.counting import Counts
from ipitrace.watch.model import (
    Count,
    ExitsOfReason,
    IpiKind,
    Other,
    PairsLeftOut,
    VcpuCounts,
    VcpuPair,
)
from ipitrace.words.exit_reasons import Isa, reason_name
from ipitrace.words.paths import IpiPath

# The ICR's delivery modes (SDM vol. 3A, "Interrupt Command Register"); KVM keeps 3 for
# remote reads of its own (APIC_DM_REMRD) and 7 for the legacy controller.
MODES: Final = ("fixed", "lowest", "smi", "remote-read", "nmi", "init", "startup", "extint")

# An exit for an access to the APIC's page has the register in info1. Here it is known to be a
# write of the ICR, because KVM sent an IPI afterwards.
_ICR_WRITE: Final = (INFO_OF_ICR_WRITE[Isa.SVM], INFO_OF_ICR_WRITE[Isa.VMX])

_HEADS: Final = (
    "events",
    "missed",
    "sends",
    "wakeups",
    "waited",
    "fixed",
    "apicv",
    "pv_tlb_flushes",
    "unplaced",
    "xen_hypercalls",
)
_KEY_BITS: Final = 34  # width of the keys of _grouped()
_NONE: Final = Count(0, 0)

Ints = NDArray[np.int64]
_Grouped = list[list[tuple[int, Count]]]  # for each VM, most frequent first


def _field(keys: NDArray[np.uint64], name: str) -> Ints:
    shift, bits = WATCH_KEY[name]
    field: NDArray[np.uint64] = keys >> np.uint64(shift) & np.uint64((1 << bits) - 1)
    return field.astype(np.int64)


@dataclass(frozen=True)
class _Rows:
    """Cells in use, one per element: VM, slot, key, and counts."""

    vm: Ints
    slot: Ints
    key: NDArray[np.uint64]
    delta: Ints
    total: Ints

    def of(self, keep: "NDArray[np.bool_] | NDArray[np.intp]") -> "_Rows":
        """The chosen rows, or the rows in this order."""
        return _Rows(
            self.vm[keep], self.slot[keep], self.key[keep], self.delta[keep], self.total[keep]
        )


class _Sums:
    """The counts of all VMs, added up."""

    def __init__(
        self, counts: Counts, ends: Ints, vcpu_of_slot: Ints, *, exits_silent: bool
    ) -> None:
        """VM i has the slots from `ends[i]` to before `ends[i + 1]`."""
        n_vms = len(ends) - 1
        vm_of_slot = np.repeat(np.arange(n_vms), np.diff(ends))
        before, now = counts.before.astype(np.int64), counts.now.astype(np.int64)
        rows = _Rows(vm_of_slot[counts.slot], counts.slot, counts.key, now - before, now)
        what = _field(rows.key, "WHAT")
        ipis, others, exits, cpus = (
            rows.of(what == kind) for kind in (What.IPI, What.OTHER, What.EXIT, What.CPU)
        )

        self.heads_before = {name: _summed(counts.heads_before[name], ends) for name in _HEADS}
        self.heads = {name: _summed(counts.heads[name], ends) for name in _HEADS}
        self.wakeups_before = counts.heads_before["wakeups"].tolist()
        self.wakeups = counts.heads["wakeups"].tolist()
        self.cpu_before = counts.heads_before["cpu"].tolist()

        target, vector = _field(ipis.key, "TARGET"), _field(ipis.key, "VECTOR")
        order = np.lexsort(
            (vector, target, vcpu_of_slot[ipis.slot], -ipis.total, -ipis.delta, ipis.vm)
        )
        self.ipis = ipis = ipis.of(order)
        self.ipis_of = np.searchsorted(ipis.vm, np.arange(n_vms + 1)).tolist()
        self.sender = vcpu_of_slot[ipis.slot]
        self.target, self.vector = target[order], vector[order]
        self.mode = _field(ipis.key, "MODE")
        self.path = _paths(ipis.key, exits_silent=exits_silent)

        kind = self.vector | self.mode << 8 | self.path.astype(np.int64) << 11
        self.kinds = _grouped(kind, ipis, n_vms)
        self.sent = _grouped(ipis.slot, ipis, n_vms)
        self.received = _grouped(self.target, ipis, n_vms)
        kind = _field(others.key, "VECTOR") | _field(others.key, "MODE") << 8
        self.others = _grouped(kind, others, n_vms)
        reason = (exits.key & np.uint64((1 << _KEY_BITS) - 1)).astype(np.int64)
        self.exits = _grouped(reason, exits, n_vms)
        moved = cpus.of(cpus.delta > 0)
        cpu = (moved.key & np.uint64(0xFFFFFFFF)).astype(np.int64)
        self.moved_to = _grouped(cpu, moved, n_vms)


class Traffic:
    """One VM's counts between two readings of the same slots."""

    def __init__(self, sums: _Sums, vm: int, vcpus: Sequence[int], first_slot: int) -> None:
        """Use traffic()."""
        self._sums, self._vm, self._vcpus, self._first_slot = sums, vm, vcpus, first_slot

    def head(self, name: str, index: int | None = None) -> Count:
        """A counter of the heads, over all vCPUs."""
        before, after = self._sums.heads_before[name][self._vm], self._sums.heads[name][self._vm]
        if index is not None:
            before, after = before[index], after[index]
        return Count(after - before, after) if after else _NONE

    def ipis(self) -> Count:
        """Interrupts accepted for sends, including those without a free cell."""
        lost = self.head("unplaced", What.IPI - 1)
        sent = [count for _, count in self._sums.sent[self._vm]]
        return Count(
            sum(count.delta for count in sent) + lost.delta,
            sum(count.total for count in sent) + lost.total,
        )

    def pairs(self, top: int) -> tuple[tuple[VcpuPair, ...], PairsLeftOut]:
        """The busiest `top` pairs (0: all), and the sum of the others."""
        first, end = self._sums.ipis_of[self._vm : self._vm + 2]
        if first == end:  # most VMs have none, and NumPy takes as long for no rows
            return (), PairsLeftOut(0, _NONE)
        sums, rows = self._sums, self._sums.ipis
        rest = min(first + top, end) if top else end
        columns = (sums.sender, sums.target, sums.vector, sums.mode, sums.path)
        listed = zip(
            *(column[first:rest].tolist() for column in (*columns, rows.delta, rows.total)),
            strict=True,
        )
        pairs = tuple(
            VcpuPair(
                sender,
                None if target == WATCH_TARGET_UNKNOWN else target,
                vector,
                MODES[mode],
                IpiPath(path).text,
                Count(delta, total),
            )
            for sender, target, vector, mode, path, delta, total in listed
        )
        count = Count(int(rows.delta[rest:end].sum()), int(rows.total[rest:end].sum()))
        return pairs, PairsLeftOut(end - rest, count)

    def kinds(self) -> tuple[IpiKind, ...]:
        """IPIs by vector, mode and path, most frequent first."""
        return tuple(
            IpiKind(key & 0xFF, MODES[key >> 8 & 7], IpiPath(key >> 11).text, count)
            for key, count in self._sums.kinds[self._vm]
        )

    def others(self) -> tuple[Other, ...]:
        """Interrupts that were not IPIs, by vector and mode, most frequent first."""
        return tuple(
            Other(key & 0xFF, MODES[key >> 8], count) for key, count in self._sums.others[self._vm]
        )

    def exits(self) -> tuple[ExitsOfReason, ...]:
        """Exits by reason from kvm_exit, most frequent first."""
        return tuple(
            ExitsOfReason(reason_name(key >> 32, key & 0xFFFFFFFF), count)
            for key, count in self._sums.exits[self._vm]
        )

    def vcpus(self) -> tuple[VcpuCounts, ...]:
        """For each vCPU: IPIs sent, IPIs received, and wake-ups."""
        sent, received = dict(self._sums.sent[self._vm]), dict(self._sums.received[self._vm])
        before, after = self._sums.wakeups_before, self._sums.wakeups
        return tuple(
            VcpuCounts(
                vcpu,
                sent.get(slot, _NONE),
                received.get(vcpu, _NONE),
                Count(after[slot] - before[slot], after[slot]),
            )
            for slot, vcpu in enumerate(self._vcpus, self._first_slot)
        )

    def unplaced(self) -> Count:
        """Events of any kind without a free cell."""
        before = sum(self._sums.heads_before["unplaced"][self._vm])
        after = sum(self._sums.heads["unplaced"][self._vm])
        return Count(after - before, after)

    def cpus(self) -> set[int]:
        """The host CPUs on which a program ran in the interval, and the last one before it."""
        last = self._sums.cpu_before[self._first_slot : self._first_slot + len(self._vcpus)]
        return {cpu - 1 for cpu in last if cpu} | {c for c, _ in self._sums.moved_to[self._vm]}


def traffic(counts: Counts, vcpus: Sequence[Sequence[int]], *, exits_silent: bool) -> list[Traffic]:
    """The counts of each VM.

    Args:
        counts: the slots of the VMs, grouped by VM.
        vcpus: for each VM, KVM's vcpu_id of each of its slots.
        exits_silent: kvm_exit is attached and assumed not to fire on this host.
    """
    ends = np.cumsum([0, *map(len, vcpus)])
    vcpu_of_slot = np.array([vcpu for of_vm in vcpus for vcpu in of_vm], np.int64)
    sums = _Sums(counts, ends, vcpu_of_slot, exits_silent=exits_silent)
    return [
        Traffic(sums, vm, of_vm, first)
        for vm, (of_vm, first) in enumerate(zip(vcpus, ends[:-1].tolist(), strict=True))
    ]


def has_exits(counts: Counts) -> bool:
    """Whether the counts include a kvm_exit."""
    return bool((_field(counts.key, "WHAT") == What.EXIT).any())


def _summed(column: NDArray[np.uint64], ends: Ints) -> list[Any]:
    """Each VM's sum over its slots; of a column of arrays, each VM's sums."""
    until = np.zeros((len(column) + 1, *column.shape[1:]), np.uint64)
    np.cumsum(column, axis=0, out=until[1:])
    sums: list[Any] = (until[ends[1:]] - until[ends[:-1]]).tolist()
    return sums


def _grouped(keys: Ints, rows: _Rows, n_vms: int) -> _Grouped:
    """Each VM's rows added up by key, which has at most _KEY_BITS bits."""
    found: _Grouped = [[] for _ in range(n_vms)]
    distinct, where = np.unique(rows.vm << _KEY_BITS | keys, return_inverse=True)
    delta, total = np.zeros(len(distinct), np.int64), np.zeros(len(distinct), np.int64)
    np.add.at(delta, where, rows.delta)
    np.add.at(total, where, rows.total)
    order = np.lexsort((distinct, -total, -delta))
    columns = (column[order].tolist() for column in (distinct, delta, total))
    for whole, of_delta, of_total in zip(*columns, strict=True):
        vm, key = divmod(whole, 1 << _KEY_BITS)
        found[vm].append((key, Count(of_delta, of_total)))
    return found


def _paths(keys: NDArray[np.uint64], *, exits_silent: bool) -> NDArray[np.int8]:
    """The IpiPath of each IPI cell.

    A send in KVM's fastpath is not distinguished from other exits for the ICR's MSR. If kvm_exit
    may fire, the path of an IPI outside of any exit is UNKNOWN: until 2023, SVM's fastpath fired
    kvm_exit only afterwards, and the exit may have begun before the vCPU was watched.
    """
    isa = _field(keys, "ISA")
    reason = _field(keys, "REASON").astype(np.uint32)
    path = path_of_exits(isa, reason, np.where(isa == Isa.SVM, *_ICR_WRITE))
    if exits_silent:
        path[isa == 0] = IpiPath.EMULATED
    sent_by = _field(keys, "SENT_BY")
    path[sent_by == SentBy.HYPERCALL] = IpiPath.PV_HYPERCALL
    path[sent_by == SentBy.HV] = IpiPath.HV_HYPERCALL
    by_avic = sent_by == SentBy.AVIC
    path[by_avic] = path_of_avic_cause(_field(keys[by_avic], "CAUSE"))
    return path
