# SPDX-License-Identifier: Apache-2.0
"""The counters of `watch` as OpenMetrics text, for node_exporter's textfile collector.

A counter starts when the VM is first watched, and never decreases while it is watched. Pairs
are not exported, because their number grows with the square of the number of vCPUs. Senders and
targets each have their sum.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from ipitrace.render.openmetrics import Family, Point, openmetrics_text
from ipitrace.watch.model import VmInterval, WatchInterval


@dataclass(frozen=True)
class _Family:
    """A metric that each VM has: the name without the suffix, the meaning and the values."""

    name: str
    kind: Literal["counter", "gauge"]
    meaning: str
    points: Callable[[VmInterval], Iterable[Point]]


_FAMILIES: Final = (
    _Family(
        "ipitrace_ipis",
        "counter",
        "IPIs that were seen; see ipitrace_ipis_complete",
        lambda vm: [
            ({"vector": str(k.vector), "mode": k.mode, "path": k.path}, k.ipis.total)
            for k in vm.kinds
        ],
    ),
    _Family(
        "ipitrace_ipis_sent",
        "counter",
        "IPIs that were seen, by the sending vCPU",
        lambda vm: [({"vcpu": str(v.vcpu)}, v.sent.total) for v in vm.vcpus],
    ),
    _Family(
        "ipitrace_ipis_received",
        "counter",
        "IPIs that were seen, by the target vCPU",
        lambda vm: [({"vcpu": str(v.vcpu)}, v.received.total) for v in vm.vcpus],
    ),
    _Family(
        "ipitrace_wakeups",
        "counter",
        "times a halted vCPU woke up",
        lambda vm: [({"vcpu": str(v.vcpu)}, v.wakeups.total) for v in vm.vcpus],
    ),
    _Family(
        "ipitrace_interrupts",
        "counter",
        "interrupts other than IPIs, accepted in the threads of the vCPUs",
        lambda vm: [
            ({"vector": str(o.vector), "mode": o.mode}, o.interrupts.total) for o in vm.others
        ],
    ),
    _Family(
        "ipitrace_exits",
        "counter",
        "VM exits",
        lambda vm: [({"reason": row.reason}, row.exits.total) for row in vm.exits.reasons or ()],
    ),
    _Family(
        "ipitrace_pv_tlb_flushes",
        "counter",
        "TLB flushes of preempted vCPUs, each in place of one or more IPIs",
        lambda vm: [] if vm.pv_tlb_flushes is None else [({}, vm.pv_tlb_flushes.total)],
    ),
    _Family(
        "ipitrace_unplaced",
        "counter",
        "events counted but not attributed, since a table was full",
        lambda vm: [({}, vm.unplaced.total)],
    ),
    _Family(
        "ipitrace_missed",
        "counter",
        "events not counted, since one BPF program interrupted another",
        lambda vm: [({}, vm.missed.total)],
    ),
    _Family(
        "ipitrace_ipis_complete",
        "gauge",
        "1 when the evidence shows that all IPIs were seen; 0 when they are a lower bound, or "
        "too little was seen to decide (docs/watch.md)",
        lambda vm: [({}, float(vm.visibility.complete is True))],
    ),
    _Family(
        "ipitrace_watched_seconds",
        "gauge",
        "seconds since the VM was first watched",
        lambda vm: [({}, vm.watched_s)],
    ),
)
_GONE: Final[Mapping[str, tuple[str, Callable[[WatchInterval], int]]]] = {
    "ipitrace_watch_ended_ipis": (
        "IPIs that were seen in VMs that have ended",
        lambda interval: interval.departed,
    ),
    "ipitrace_watch_ended_vms": (
        "VMs that have ended",
        lambda interval: interval.departed_vms,
    ),
    "ipitrace_watch_unseen_sends": (
        "sends by vCPUs for which there was no slot",
        lambda interval: interval.unseen.sends.total,
    ),
    "ipitrace_watch_unseen_vcpu_threads": (
        "vCPU threads that came and went, and never had a slot; a lower bound",
        lambda interval: interval.unseen.threads.total,
    ),
    "ipitrace_watch_unseen_overflows": (
        "times that more vCPU threads than can be followed had no slot",
        lambda interval: interval.unseen.overflows.total,
    ),
}
_FAILURES: Final = "ipitrace_watch_write_failures"
_OWN: Final = {
    "ipitrace_watch_cpu_share": "share of one CPU that ipitrace used in the last interval",
    "ipitrace_watch_resident_bytes": "memory of the watching process",
    "ipitrace_watch_unreadable_processes": "processes that cannot be inspected; their VMs "
    "are not watched",
    "ipitrace_watch_sight_complete": "1 when all processes could be inspected",
    "ipitrace_watch_pending_vcpu_threads": "vCPU threads whose VM has not been examined yet",
    "ipitrace_watch_odd_processes": "processes that cannot be read completely, or are malformed",
}


def render_openmetrics(interval: WatchInterval, *, write_failures: int = 0) -> str:
    """The interval's totals as one exposition, ended by # EOF.

    `write_failures` is the number of earlier expositions that could not be written.
    """
    # A process may have closed a VM and opened another. Until it is known that the first has ended,
    # both are watched under one name. The later one continues the series.
    vms = {(vm.name, vm.pid): vm for vm in interval.vms}.values()
    own = (
        interval.own.cpu_share,
        interval.own.rss_bytes,
        interval.sight.unreadable_processes,
        int(interval.sight.complete),
        interval.pending.threads,
        len(interval.sight.odd),
    )
    failures = "times this text could not be written, for instance to a full disk"
    return openmetrics_text(
        [
            *(
                Family(family.name, family.meaning, _points(family, vms), family.kind)
                for family in _FAMILIES
            ),
            *(
                Family(name, meaning, [({}, value)])
                for (name, meaning), value in zip(_OWN.items(), own, strict=True)
            ),
            *(
                Family(name, meaning, [({}, count(interval))], "counter")
                for name, (meaning, count) in _GONE.items()
            ),
            Family(_FAILURES, failures, [({}, write_failures)], "counter"),
        ]
    )


def _points(family: _Family, vms: Collection[VmInterval]) -> Iterator[Point]:
    for vm in vms:
        of_vm = {"vm": vm.name, "pid": str(vm.pid)}
        yield from ((of_vm | dict(own), value) for own, value in family.points(vm))
