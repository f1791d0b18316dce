# SPDX-License-Identifier: Apache-2.0
"""What was counted in one interval, as plain data.

History of SCHEMA_VERSION (of a line that `watch --json` prints):
    1  first version.
    2  sight; a VM's uid.
    3  ended_vms, ended_rest, unseen.
    4  unseen.overflows.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

SCHEMA_VERSION = 4
MOST_ENDED = 32
"""VMs that have ended and are kept with their pairs."""
MOST_ENDED_PAIRS = 64


@dataclass(frozen=True)
class Count:
    """How often something happened: in the interval, and since its VM is watched."""

    delta: int
    total: int


@dataclass(frozen=True)
class Visibility:
    """Whether the IPIs counted are all there were.

    `complete`: True when the evidence says that this VM's IPIs take exits, False when some
    leave no trace on this host, None when too little was seen (evidence.py). `why` says it in
    words.
    """

    complete: bool | None
    why: str


@dataclass(frozen=True)
class Pair:
    """IPIs from one vCPU to another; `target` is None where nothing tells which it was."""

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
    """The pairs that are not listed."""

    pairs: int
    ipis: Count


@dataclass(frozen=True)
class VcpuCounts:
    """One vCPU: IPIs it sent and those it was sent, and how often it was woken from a halt."""

    vcpu: int
    sent: Count
    received: Count
    wakeups: Count


@dataclass(frozen=True)
class Other:
    """Interrupts that were no IPIs, of one vector and delivery mode."""

    vector: int
    mode: str
    interrupts: Count


@dataclass(frozen=True)
class ExitReason:
    """Exits of one reason."""

    reason: str
    exits: Count


@dataclass(frozen=True)
class Exits:
    """Exits by reason, most frequent first; `reasons` is None where `absent` says why."""

    source: str | None
    reasons: tuple[ExitReason, ...] | None
    absent: str | None


@dataclass(frozen=True)
class VmInterval:
    """One VM in one interval.

    Attributes:
        sends: times the guest asked KVM to send, whatever the number of targets.
        ipis: interrupts accepted for them: one for each target.
        pairs: the busiest.
        waited: those wake-ups for which the thread had slept and not only polled.
        unplaced: counted, but not told apart, since the table was full.
        missed: not counted, since a program was running already.
        cpus: the host CPUs on which one of its vCPU threads was seen.
        watched_s: how long it is watched.
        uid: the user its process runs as (effective); None when that is not known.
        unwatched: vCPUs whose thread is not known, or runs a vCPU of another VM since, or for
            which there was no room.
    """

    name: str
    pid: int
    vcpus: tuple[VcpuCounts, ...]
    visibility: Visibility
    sends: Count
    ipis: Count
    pairs: tuple[Pair, ...]
    pairs_left_out: PairsLeftOut
    kinds: tuple[IpiKind, ...]
    exits: Exits
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


@dataclass(frozen=True)
class EndedVm:
    """What a VM that has ended did from when it was watched to its end, and why it has ended.

    Each `delta` in `vm` is the `total`; its pairs are those with the most IPIs.
    """

    vm: VmInterval
    why: str


@dataclass(frozen=True)
class EndedRest:
    """VMs that have ended and are not listed."""

    vms: int
    ipis: int


@dataclass(frozen=True)
class Unseen:
    """vCPU threads that ran while nobody counted what they did; lower bounds.

    Attributes:
        sends: times they asked KVM to send, whatever the number of targets; before they were
            watched, or without ever being.
        threads: those that came and went, and were never watched.
        gone_sends: those of `sends` that were these threads'.
        overflows: times that more threads were not watched than can be followed. Some of them, and
            what they sent, may be missing from the other counts.
    """

    sends: Count = Count(0, 0)
    threads: Count = Count(0, 0)
    gone_sends: Count = Count(0, 0)
    overflows: Count = Count(0, 0)


@dataclass(frozen=True)
class CpuPosts:
    """One host CPU's late posts.

    `vms` are the watched VMs of which a vCPU thread was seen on it in the interval, and
    `allowed` those of which one may run there: asked where none was seen, else empty.
    """

    cpu: int
    rows: Mapping[str, int | None]
    vms: tuple[str, ...]
    allowed: tuple[str, ...]


@dataclass(frozen=True)
class LatePosts:
    """Rows of /proc/interrupts in the interval, whole host, whichever VM they were for.

    `rows` has the sum over all CPUs, None where a CPU's part is not known; `cpus` those
    CPUs where something was added. `elsewhere` is what came to CPUs on which no watched
    vCPU was seen: row to CPU to increase. `rows` is None where `absent` says why.
    """

    rows: Mapping[str, int | None] | None
    cpus: tuple[CpuPosts, ...]
    elsewhere: Mapping[str, Mapping[int, int]]
    absent: str | None


@dataclass(frozen=True)
class Sight:
    """What was not seen when all processes were looked at last.

    Attributes:
        unreadable_processes: they may not be looked into, and may hold VMs.
        unlisted: why /proc does not even list all processes; None when it does.
        missing: the capabilities that we lack to look into any process.
        odd: processes of which something was left out or refused, and why.
    """

    unreadable_processes: int = 0
    unlisted: str | None = None
    missing: tuple[str, ...] = ()
    odd: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether no VM can have been overlooked for want of rights."""
        return not self.unreadable_processes and self.unlisted is None


@dataclass(frozen=True)
class OwnCost:
    """What watching took of this process; the programs' time is the vCPU threads'.

    `cpu_share` is of one CPU, in the interval; `rss_bytes` is now.
    """

    cpu_share: float
    rss_bytes: int


@dataclass(frozen=True)
class Interval:
    """One line of `watch --json`.

    Attributes:
        number: 0, 1, ...; None for the summary of the whole run.
        time: when it ended, UTC, ISO 8601.
        recursion_misses: events of the whole host, other VMs' included, that the kernel
            turned away; an upper bound of ours. None where the kernel does not count.
        ended: VMs that ended in it, with why.
        departed: IPIs counted in all VMs that have ended.
        stopped: why the run cannot go on; None otherwise.
        sight: whether there may be VMs that could not be seen.
        ended_vms: what those that ended in it did; in the summary, the MOST_ENDED with the most
            IPIs of all that have ended, at most MOST_ENDED_PAIRS pairs of each.
        ended_rest: those of them that are not listed.
        unseen: what ran and was not watched, where all VMs are.
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

    def to_dict(self) -> dict[str, object]:
        """The interval as types that json accepts (tuples become arrays)."""
        return asdict(self)

    def to_json(self) -> str:
        """The same as one line; a tenth of the work, since nothing is copied."""
        return json.dumps(self, default=vars, check_circular=False)
