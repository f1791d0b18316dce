# SPDX-License-Identifier: Apache-2.0
"""Exits per IPI by reason."""

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from ipitrace.correlate.exits import ExitTable
from ipitrace.recording.row import ExitsPerIpi, PerSide
from ipitrace.summary.sides import Sides
from ipitrace.summary.storms import Measured
from ipitrace.words.events import Kind
from ipitrace.words.exit_reasons import reason_name

KVM_EXIT_SOURCE = "kvm_exit tracepoint"
KVM_EXIT_UNSORTED = "kvm_exit tracepoint, reasons not known: see the note on the clock"
KVM_STATS_SOURCE = "KVM_GET_STATS_FD"
_NO_OTHERS = ("the sender is the target", "every target is a sender")
_EXIT_COUNTERS = ("exits", "_exits")  # KVM's names: the total, and by reason


def exits_per_ipi(
    measured: Measured, sides: Sides, stats: Mapping[str, PerSide] | None
) -> tuple[ExitsPerIpi, dict[str, str]]:
    """Exits per IPI from kvm_exit where it fires, else from KVM's statistics.

    Where kvm_exit is known to fire, a count of no exit is a result.
    """
    absent: dict[str, str] = {}
    by_reason = _kvm_exits(measured, sides)
    none = measured.kvm_exit_fires and all(r.watched is not None for r in measured.proving)
    source = KVM_EXIT_SOURCE if by_reason or none else None
    if source is None and stats is not None:  # a count of 0 is a result
        by_reason = {k: v for k, v in stats.items() if k.endswith(_EXIT_COUNTERS)}
        source = KVM_STATS_SOURCE
    if source is None and (unsorted := _kvm_exits_counted(measured)) is not None:
        by_reason, source = {"exits": sides.per_ipi(unsorted)}, KVM_EXIT_UNSORTED
    if source is None:
        nothing = "neither kvm_exit nor KVM_GET_STATS_FD counts exits on this host"
        absent = {"exits.source": nothing, "exits.sender": nothing, "exits.target": nothing}
    if not sides.others:
        absent["exits.target"] = _NO_OTHERS[len(sides.senders) > 1]
    sender = {name: side.sender for name, side in by_reason.items() if side.sender}
    target = {name: side.target for name, side in by_reason.items() if side.target}
    return (
        ExitsPerIpi(
            source,
            None if "exits.sender" in absent else sender,
            None if "exits.target" in absent else target,
        ),
        absent,
    )


def by_reason(table: ExitTable) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """The name of each reason in a table, and which exits have it."""
    pairs = np.unique(np.stack([table.isa.astype(np.int64), table.reason]), axis=1)
    for isa, reason in pairs.T:
        yield reason_name(int(isa), int(reason)), (table.isa == isa) & (table.reason == reason)


def _kvm_exits_counted(measured: Measured) -> NDArray[np.int64] | None:
    """kvm_exit events per vCPU as counted in the rings' heads; None where kvm_exit never fires."""
    counted = [r.seen[Kind.KVM_EXIT] for r in measured.proving if r.seen is not None]
    total = np.asarray(np.sum(counted, axis=0, dtype=np.int64))
    return total if counted and (measured.kvm_exit_fires or total.any()) else None


def _kvm_exits(measured: Measured, sides: Sides) -> dict[str, PerSide]:
    """Reason name to exits per IPI, most frequent first, after the total as `exits`."""
    n_vcpus = measured.proving[0].n_vcpus
    counts: dict[str, NDArray[np.int64]] = {}
    for table in (t for r in measured.proving if r.watched for t in r.watched.exits):
        for name, chosen in by_reason(table):
            per_vcpu = counts.setdefault(name, np.zeros(n_vcpus, np.int64))
            per_vcpu[table.vcpu] += np.count_nonzero(chosen)
    if not counts:
        return {}
    ordered = sorted(counts.items(), key=lambda item: (-int(item[1].sum()), item[0]))
    total = np.stack(list(counts.values())).sum(axis=0)
    return {"exits": sides.per_ipi(total), **{n: sides.per_ipi(c) for n, c in ordered}}
