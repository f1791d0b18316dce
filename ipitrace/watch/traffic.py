# SPDX-License-Identifier: Apache-2.0
"""From cells and heads to who sent what to whom. Pure."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ipitrace.correlate.paths import Path, path_of_exits
from ipitrace.host.exit_reasons import reason_name
from ipitrace.layout import WATCH_KEY, WATCH_TARGET_UNKNOWN, Via, What
from ipitrace.tracer.counting import Counts
from ipitrace.watch.model import Count, ExitReason, IpiKind, Other, Pair, PairsLeftOut, VcpuCounts

# The ICR's delivery modes (SDM vol. 3A, "Interrupt Command Register"); KVM keeps 3 for
# remote reads of its own (APIC_DM_REMRD) and 7 for the legacy controller.
MODES: Final = ("fixed", "lowest", "smi", "remote-read", "nmi", "init", "startup", "extint")

# An APIC-write exit says in info1 which register; that it was the ICR is known here,
# since KVM went on to send.
_ICR: Final = 0x300

Ints = NDArray[np.int64]


def _field(keys: NDArray[np.uint64], name: str) -> Ints:
    shift, bits = WATCH_KEY[name]
    field: NDArray[np.uint64] = keys >> np.uint64(shift) & np.uint64((1 << bits) - 1)
    return field.astype(np.int64)


@dataclass(frozen=True)
class _Rows:
    """Cells in use, one an element: in which slot, the key, and the counts."""

    slot: Ints
    key: NDArray[np.uint64]
    delta: Ints
    total: Ints

    def of(self, what: What) -> "_Rows":
        keep = _field(self.key, "WHAT") == what
        return _Rows(self.slot[keep], self.key[keep], self.delta[keep], self.total[keep])

    def sum(self) -> Count:
        return Count(int(self.delta.sum()), int(self.total.sum()))


class Traffic:
    """One VM's counts between two readings of the same slots."""

    def __init__(
        self, before: Counts, after: Counts, vcpus: Sequence[int], *, exits_watched: bool
    ) -> None:
        """`vcpus`: KVM's vcpu_id of each slot; `exits_watched`: kvm_exit was attached."""
        self._vcpus = np.array(vcpus, np.int64)
        self._before, self._after = before.heads, after.heads
        used = np.flatnonzero(after.cells["key"].reshape(-1))
        total = after.cells["count"].reshape(-1)[used].astype(np.int64)
        former = before.cells["count"].reshape(-1)[used].astype(np.int64)
        n_cells = after.cells.shape[1]
        rows = _Rows(used // n_cells, after.cells["key"].reshape(-1)[used], total - former, total)
        self._ipis, self._others = rows.of(What.IPI), rows.of(What.OTHER)
        self._exits, self._cpus = rows.of(What.EXIT), rows.of(What.CPU)
        self._path = _paths(
            self._ipis.key, exits_fire=not exits_watched or bool(len(self._exits.key))
        )

    def head(self, name: str, index: int | None = None) -> Count:
        """A counter of the heads, over all vCPUs."""
        return self._heads(name, index, slice(None))

    def ipis(self) -> Count:
        """Interrupts accepted for sends, those that found no cell included."""
        placed, lost = self._ipis.sum(), self.head("unplaced", What.IPI)
        return Count(placed.delta + lost.delta, placed.total + lost.total)

    def pairs(self, top: int) -> tuple[tuple[Pair, ...], PairsLeftOut]:
        """The busiest `top` pairs (0: all), and the sum of the others."""
        rows, target = self._ipis, _field(self._ipis.key, "TARGET")
        vector, mode = _field(rows.key, "VECTOR"), _field(rows.key, "MODE")
        sender = self._vcpus[rows.slot]
        order = np.lexsort((vector, target, sender, -rows.total, -rows.delta))
        listed = order[: top or len(order)]
        pairs = tuple(
            Pair(
                int(sender[i]),
                None if target[i] == WATCH_TARGET_UNKNOWN else int(target[i]),
                int(vector[i]),
                MODES[mode[i]],
                Path(int(self._path[i])).text,
                Count(int(rows.delta[i]), int(rows.total[i])),
            )
            for i in listed
        )
        rest = order[len(listed) :]
        count = Count(int(rows.delta[rest].sum()), int(rows.total[rest].sum()))
        return pairs, PairsLeftOut(len(rest), count)

    def kinds(self) -> tuple[IpiKind, ...]:
        """IPIs by vector, mode and path, most frequent first."""
        rows = self._ipis
        keys = _field(rows.key, "VECTOR") | _field(rows.key, "MODE") << 8
        keys |= self._path.astype(np.int64) << 11
        return tuple(
            IpiKind(key & 0xFF, MODES[key >> 8 & 7], Path(key >> 11).text, count)
            for key, count in _grouped(keys, rows)
        )

    def others(self) -> tuple[Other, ...]:
        """Interrupts that were no IPIs, by vector and mode, most frequent first."""
        rows = self._others
        keys = _field(rows.key, "VECTOR") | _field(rows.key, "MODE") << 8
        return tuple(
            Other(key & 0xFF, MODES[key >> 8], count) for key, count in _grouped(keys, rows)
        )

    def exits(self) -> tuple[ExitReason, ...]:
        """Exits by reason as kvm_exit told them, most frequent first."""
        keys = (self._exits.key & np.uint64((1 << 34) - 1)).astype(np.int64)
        return tuple(
            ExitReason(reason_name(key >> 32, key & 0xFFFFFFFF), count)
            for key, count in _grouped(keys, self._exits)
        )

    def vcpus(self) -> tuple[VcpuCounts, ...]:
        """What each vCPU sent, was sent, and how often it woke."""
        rows, n_slots = self._ipis, len(self._vcpus)
        sent = _added(rows, rows.slot, n_slots)
        received = _added(rows, _field(rows.key, "TARGET"), WATCH_TARGET_UNKNOWN + 1)
        before, after = self._before["wakeups"].tolist(), self._after["wakeups"].tolist()
        return tuple(
            VcpuCounts(
                vcpu, sent[slot], received[vcpu], Count(after[slot] - before[slot], after[slot])
            )
            for slot, vcpu in enumerate(self._vcpus.tolist())
        )

    def unplaced(self) -> Count:
        """What found no cell, of any kind."""
        counts = [self.head("unplaced", what) for what in What]
        return Count(sum(c.delta for c in counts), sum(c.total for c in counts))

    def cpus(self) -> set[int]:
        """The host CPUs on which a program ran in the interval, and the last one before it."""
        moved = self._cpus.key[self._cpus.delta > 0] & np.uint64(0xFFFFFFFF)
        before = self._before["cpu"].astype(np.int64)
        return set(moved.astype(np.int64).tolist()) | set((before[before > 0] - 1).tolist())

    def _heads(self, name: str, index: int | None, slots: slice) -> Count:
        at: Any = (slots,) if index is None else (slots, index)
        before, after = (int(heads[name][at].sum()) for heads in (self._before, self._after))
        return Count(after - before, after)


def _added(rows: _Rows, where: Ints, size: int) -> "defaultdict[int, Count]":
    """The rows added up by `where` (0 to size - 1); nothing where there are none."""
    found: defaultdict[int, Count] = defaultdict(lambda: Count(0, 0))
    if not len(where):
        return found
    delta, total = np.zeros(size, np.int64), np.zeros(size, np.int64)
    np.add.at(delta, where, rows.delta)
    np.add.at(total, where, rows.total)
    for at in np.flatnonzero(total).tolist():
        found[at] = Count(int(delta[at]), int(total[at]))
    return found


def _grouped(keys: Ints, rows: _Rows) -> list[tuple[int, Count]]:
    """The rows added up by key, most frequent first."""
    if not len(keys):  # most VMs lack most kinds, and NumPy takes as long for nothing
        return []
    distinct, where = np.unique(keys, return_inverse=True)
    delta, total = np.zeros(len(distinct), np.int64), np.zeros(len(distinct), np.int64)
    np.add.at(delta, where, rows.delta)
    np.add.at(total, where, rows.total)
    order = np.lexsort((distinct, -total, -delta))
    return [(int(distinct[i]), Count(int(delta[i]), int(total[i]))) for i in order]


def _paths(keys: NDArray[np.uint64], *, exits_fire: bool) -> NDArray[np.int8]:
    """The Path of each IPI cell.

    What KVM's fastpath did is not told from any other exit for the ICR's MSR. Where
    kvm_exit fires, an IPI outside of any exit is UNKNOWN: SVM's fastpath told of its exit
    only afterwards, until 2023.
    """
    if not len(keys):
        return np.zeros(0, np.int8)
    isa = _field(keys, "ISA")
    reason = _field(keys, "REASON").astype(np.uint32)
    path = path_of_exits(isa, reason, np.full(len(keys), _ICR))
    if not exits_fire:
        path[isa == 0] = Path.EMULATED
    via = _field(keys, "VIA")
    path[via == Via.HYPERCALL] = Path.PV_HYPERCALL
    path[via == Via.AVIC] = Path.AVIC_INCOMPLETE
    return path
