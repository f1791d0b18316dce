# SPDX-License-Identifier: Apache-2.0
"""The counters of `watch` as OpenMetrics text, for node_exporter's textfile collector.

Counters are since the VM is watched and never fall while it is. Pairs are not exported:
their number grows with the square of the vCPUs; senders and targets each have their sum.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from ipitrace.render.openmetrics import labels
from ipitrace.watch.model import Interval, VmInterval

Points = Iterable[tuple[Mapping[str, str], float]]


@dataclass(frozen=True)
class _Family:
    """A metric of each VM: its name without the suffix, its meaning, and its values."""

    name: str
    kind: Literal["counter", "gauge"]
    meaning: str
    points: Callable[[VmInterval], Points]


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
        "IPIs that were seen, by the vCPU that sent them",
        lambda vm: [({"vcpu": str(v.vcpu)}, v.sent.total) for v in vm.vcpus],
    ),
    _Family(
        "ipitrace_ipis_received",
        "counter",
        "IPIs that were seen, by the vCPU they were for",
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
        "ipitrace_unplaced",
        "counter",
        "events counted but not told apart, since a table was full",
        lambda vm: [({}, vm.unplaced.total)],
    ),
    _Family(
        "ipitrace_missed",
        "counter",
        "events not counted, since one program interrupted another",
        lambda vm: [({}, vm.missed.total)],
    ),
    _Family(
        "ipitrace_ipis_complete",
        "gauge",
        "1 when the evidence says that all IPIs were seen; 0 when they are a lower bound, or "
        "too little was seen to tell (docs/watch.md)",
        lambda vm: [({}, float(vm.visibility.complete is True))],
    ),
    _Family(
        "ipitrace_watched_seconds",
        "gauge",
        "how long the VM is watched",
        lambda vm: [({}, vm.watched_s)],
    ),
)
_GONE: Final[Mapping[str, tuple[str, Callable[[Interval], int]]]] = {
    "ipitrace_watch_ended_ipis": (
        "IPIs that were seen in VMs that have ended",
        lambda interval: interval.departed,
    ),
    "ipitrace_watch_unseen_sends": (
        "at least so many sends by vCPUs before they were watched, or never watched",
        lambda interval: interval.unseen.sends.total,
    ),
    "ipitrace_watch_unseen_vcpu_threads": (
        "vCPU threads that came and went, and were never watched",
        lambda interval: interval.unseen.threads.total,
    ),
    "ipitrace_watch_unseen_overflows": (
        "times that more vCPU threads than can be followed were not watched",
        lambda interval: interval.unseen.overflows.total,
    ),
}
_FAILURES: Final = "ipitrace_watch_write_failures"
_OWN: Final = {
    "ipitrace_watch_cpu_share": "what watching took of one CPU in the last interval",
    "ipitrace_watch_resident_bytes": "memory of the watching process",
    "ipitrace_watch_unreadable_processes": "processes that may not be looked into; VMs of theirs "
    "are not watched",
    "ipitrace_watch_sight_complete": "1 when all processes could be looked into",
    "ipitrace_watch_odd_processes": "processes of which something was left out or refused",
}


def render_openmetrics(interval: Interval, *, write_failures: int = 0) -> str:
    """The interval's totals as one exposition, ended by # EOF.

    `write_failures` is how often an exposition before this one could not be written.
    """
    lines = []
    # A process may have closed a VM and opened another: until it is known that the first has ended,
    # both are watched, under one name. The later one goes on with the series.
    vms = {labels({"vm": vm.name, "pid": str(vm.pid)}): vm for vm in interval.vms}
    for family in _FAMILIES:
        lines += [f"# TYPE {family.name} {family.kind}", f"# HELP {family.name} {family.meaning}"]
        suffix = "_total" if family.kind == "counter" else ""
        for vm in vms.values():
            of_vm = {"vm": vm.name, "pid": str(vm.pid)}
            lines += [
                f"{family.name}{suffix}{labels(of_vm | dict(own))} {value!r}"
                for own, value in family.points(vm)
            ]
    own = (
        interval.own.cpu_share,
        interval.own.rss_bytes,
        interval.sight.unreadable_processes,
        int(interval.sight.complete),
        len(interval.sight.odd),
    )
    for (name, meaning), value in zip(_OWN.items(), own, strict=True):
        lines += [f"# TYPE {name} gauge", f"# HELP {name} {meaning}", f"{name} {value!r}"]
    for name, (meaning, count) in _GONE.items():
        lines += [f"# TYPE {name} counter", f"# HELP {name} {meaning}"]
        lines.append(f"{name}_total {count(interval)!r}")
    lines += [
        f"# TYPE {_FAILURES} counter",
        f"# HELP {_FAILURES} times this text could not be written, for instance to a full disk",
        f"{_FAILURES}_total {write_failures!r}",
    ]
    return "\n".join([*lines, "# EOF"]) + "\n"
