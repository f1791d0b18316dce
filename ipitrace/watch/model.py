# SPDX-License-Identifier: Apache-2.0
"""The counts of one interval, as plain data.

History of SCHEMA_VERSION (of a line that `watch --json` prints):
    1  first version.
    2  sight; a VM's uid.
    3  ended_vms, ended_rest, unseen.
    4  unseen.overflows.
    5  a VM's pv_tlb_flushes; pending, departed_vms; comm and threads of ended_vms.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

SCHEMA_VERSION = 5
MOST_CLAIMS = 512
"""vCPU threads that can be counted between two searches for VMs."""
MOST_STRANGERS = 1024
"""vCPU threads noted between two searches for VMs, and threads followed until they end."""
MOST_ENDED = 32
"""VMs that have ended and are kept with their pairs."""
MOST_ENDED_PAIRS = 64


@dataclass(frozen=True)
class Count:
    """A count: in the interval, and since the VM has been watched."""

    delta: int
    total: int


@dataclass(frozen=True)
class Visibility:
    """Whether the count of IPIs is complete.

    `complete`: True if the evidence shows that this VM's IPIs take exits, False if some leave
    no trace on this host, None if too little was seen (evidence.py). `why` is the reason as
    text.
    """

    complete: bool | None
    why: str


@dataclass(frozen=True)
class VcpuPair:
    """IPIs from one vCPU to another; `target` is None if it is not known."""

    sender: int
    target: int | None
    vector: int
    mode: str
    path: str
    ipis: Count


@dataclass(frozen=True)
class IpiKind:
    """IPIs of one vector, delivery mode and path, over all pairs."""

    vector: int
    mode: str
    path: str
    ipis: Count


@dataclass(frozen=True)
class PairsLeftOut:
    """The number and sum of the pairs that are not listed."""

    pairs: int
    ipis: Count


@dataclass(frozen=True)
class VcpuCounts:
    """One vCPU: the IPIs it sent, those sent to it, and its wake-ups from a halt."""

    vcpu: int
    sent: Count
    received: Count
    wakeups: Count


@dataclass(frozen=True)
class Other:
    """Interrupts of one vector and delivery mode that were not IPIs."""

    vector: int
    mode: str
    interrupts: Count


@dataclass(frozen=True)
class ExitsOfReason:
    """Exits of one reason."""

    reason: str
    exits: Count


@dataclass(frozen=True)
class VmExits:
    """Exits by reason, most frequent first; if `reasons` is None, `absent` is the reason."""

    source: str | None
    reasons: tuple[ExitsOfReason, ...] | None
    absent: str | None


@dataclass(frozen=True)
class VmInterval:
    """One VM in one interval.

    Attributes:
        sends: send requests of the guest to KVM, regardless of the number of targets.
        ipis: interrupts accepted for these requests: one for each target.
        pairs: the pairs with the most IPIs.
        waited: the wake-ups for which the thread had slept and not only polled.
        unplaced: events that were counted without their details, because the table was full.
        missed: events that were not counted, because a program was already running.
        cpus: the host CPUs on which a vCPU thread of the VM was seen.
        watched_s: how long the VM has been watched.
        uid: the effective user of the VM's process; None if not known.
        unwatched: vCPUs whose thread is not known, or now runs a vCPU of another VM, or for
            which there was no slot.
        pv_tlb_flushes: TLB flushes that KVM did for a vCPU that had been preempted; each takes the
            place of one or more IPIs. None if this kernel does not show them.
    """

    name: str
    pid: int
    vcpus: tuple[VcpuCounts, ...]
    visibility: Visibility
    sends: Count
    ipis: Count
    pairs: tuple[VcpuPair, ...]
    pairs_left_out: PairsLeftOut
    kinds: tuple[IpiKind, ...]
    exits: VmExits
    wakeups: Count
    waited: Count
    others: tuple[Other, ...]
    unplaced: Count
    missed: Count
    events: Count
    cpus: tuple[int, ...]
    watched_s: float
    unwatched: tuple[int, ...]
    uid: int | None = None
    pv_tlb_flushes: Count | None = None


@dataclass(frozen=True)
class EndedVm:
    """The counts of a VM that has ended, over the time it was watched, and why it has ended.

    Each `delta` in `vm` equals the `total`; `vm.pairs` are those with the most IPIs.

    Attributes:
        threads: the ids of the vCPU threads that were seen, if they ended before the VM was
            examined: KVM's ids of the vCPUs are then not known. `vm.vcpus` is empty, the senders of
            `vm.pairs` are these threads, and the counts are those of all VMs that the process
            `vm.pid` ran in them. Empty for other VMs.
        comm: the name that the first of these threads had given itself (/proc/PID/comm); None
            without `threads`.
    """

    vm: VmInterval
    why: str
    comm: str | None = None
    threads: tuple[int, ...] = ()


@dataclass(frozen=True)
class EndedRest:
    """The number and IPIs of VMs that have ended and are not listed."""

    vms: int
    ipis: int


@dataclass(frozen=True)
class Pending:
    """vCPU threads that are counted, and whose VM has not been examined: their number and sends.

    A VM that is examined has their counts from the first event on. So has a VM that ends before.
    """

    threads: int
    sends: int


@dataclass(frozen=True)
class Unseen:
    """vCPU threads that ran and for which there was no slot.

    Attributes:
        sends: send requests of these threads to KVM, regardless of the number of targets:
            before they had a slot, or if they never had one.
        threads: the threads that started and ended, and never had a slot; a lower bound.
        gone_sends: the part of `sends` by these threads.
        overflows: how often more threads had no slot than can be followed. Some of them may be
            missing from `threads`, and their sends from `gone_sends`.
    """

    sends: Count = Count(0, 0)
    threads: Count = Count(0, 0)
    gone_sends: Count = Count(0, 0)
    overflows: Count = Count(0, 0)


@dataclass(frozen=True)
class CpuPosts:
    """One host CPU's late posts.

    `vms` are the watched VMs of which a vCPU thread was seen on the CPU in the interval. If
    none was seen, `allowed` are those of which a vCPU thread may run there; else it is empty.
    """

    cpu: int
    rows: Mapping[str, int | None]
    vms: tuple[str, ...]
    allowed: tuple[str, ...]


@dataclass(frozen=True)
class LatePosts:
    """Increases of rows of /proc/interrupts in the interval, for the whole host and all VMs.

    `rows` has the sum over all CPUs, None if the part of a CPU is not known. `cpus` are the
    CPUs with an increase. `elsewhere` are the increases on CPUs on which no watched vCPU was
    seen: row to CPU to increase. If `rows` is None, `absent` is the reason.
    """

    rows: Mapping[str, int | None] | None
    cpus: tuple[CpuPosts, ...]
    elsewhere: Mapping[str, Mapping[int, int]]
    absent: str | None


@dataclass(frozen=True)
class Sight:
    """What the last scan of all processes could not see.

    Attributes:
        unreadable_processes: processes that cannot be inspected, and may have VMs.
        unlisted: why /proc does not list all processes; None if it does.
        missing: the capabilities that ipitrace lacks to look into any process.
        odd: processes that cannot be read or are malformed, with the reason.
    """

    unreadable_processes: int = 0
    unlisted: str | None = None
    missing: tuple[str, ...] = ()
    odd: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether ipitrace had the rights to find every VM."""
        return not self.unreadable_processes and self.unlisted is None


@dataclass(frozen=True)
class OwnCost:
    """The cost of this process. The BPF programs' time is part of the vCPU threads' time.

    `cpu_share` is a share of one CPU in the interval; `rss_bytes` is the current value.
    """

    cpu_share: float
    rss_bytes: int


@dataclass(frozen=True)
class WatchInterval:
    """One line of `watch --json`.

    Attributes:
        number: 0, 1, ...; None for the summary of the whole run.
        time: end of the interval, UTC, ISO 8601.
        recursion_misses: events of the whole host, including other VMs, that the kernel
            skipped; an upper bound for the watched VMs. None if the kernel does not count them.
        ended: VMs that ended in the interval, with the reason.
        departed: IPIs counted in all VMs that have ended.
        stopped: why the run cannot continue; None otherwise.
        sight: whether there may be VMs that could not be seen.
        ended_vms: counts of the VMs that ended in the interval; in the summary, of the MOST_ENDED
            VMs with the most IPIs of all that have ended. Each has at most MOST_ENDED_PAIRS pairs.
        ended_rest: the VMs among them that are not listed.
        unseen: threads that ran and had no slot, if all VMs are watched.
        pending: threads that are counted for a VM that is not known yet, if all VMs are watched.
        departed_vms: the number of VMs that have ended.
    """

    schema_version: int
    number: int | None
    time: str
    duration_s: float
    elapsed_s: float
    vms: tuple[VmInterval, ...]
    late_posts: LatePosts
    own: OwnCost
    recursion_misses: int | None
    ended: tuple[str, ...]
    departed: int
    stopped: str | None
    sight: Sight = Sight()
    ended_vms: tuple[EndedVm, ...] = ()
    ended_rest: EndedRest = EndedRest(0, 0)
    unseen: Unseen = Unseen()
    pending: Pending = Pending(0, 0)
    departed_vms: int = 0

    def to_dict(self) -> dict[str, object]:
        """The interval as types that json accepts (tuples become arrays)."""
        return asdict(self)

    def to_json(self) -> str:
        """The interval as one line of JSON; nothing is copied, which takes a tenth of the time."""
        return json.dumps(self, default=vars, check_circular=False)
