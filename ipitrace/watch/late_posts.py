# SPDX-License-Identifier: Apache-2.0
"""Late posts of an interval, and the CPUs of the watched vCPUs in it."""

from collections.abc import Callable, Collection, Mapping

from ipitrace.host.interrupts import PATH, InterruptCounts, delta
from ipitrace.watch.model import CpuPosts, LatePosts
from ipitrace.words.interrupts import POSTED_ROWS, arrived_elsewhere

NamesByCpu = Mapping[int, set[str]]


def late_posts(
    before: InterruptCounts | None,
    after: InterruptCounts | None,
    vms_on: NamesByCpu,
    may_run: Callable[[Collection[int]], NamesByCpu],
) -> LatePosts:
    """The increases between two readings.

    Args:
        before: the earlier reading.
        after: the later one.
        vms_on: CPU to the VMs of which a vCPU thread was seen on it.
        may_run: returns the VMs of which a vCPU thread may run on the given CPUs. It is called
            if late posts reached CPUs on which no vCPU thread was seen.
    """
    if before is None or after is None:
        return LatePosts(None, (), {}, f"{PATH} cannot be read")
    added = delta(before, after)
    rows = {row: added.rows[row] for row in POSTED_ROWS if row in added.rows}
    if not rows:
        return LatePosts(None, (), {}, f"{PATH} has no rows {', '.join(POSTED_ROWS)}")
    on_cpus = {
        row: {str(cpu): n or 0 for cpu, n in zip(added.cpus, of_cpus, strict=True)}
        for row, of_cpus in rows.items()
    }
    elsewhere = arrived_elsewhere(on_cpus, vms_on)
    allowed = may_run({cpu for row in elsewhere.values() for cpu in row}) if elsewhere else {}
    cpus = tuple(
        CpuPosts(
            cpu,
            here,
            tuple(sorted(vms_on.get(cpu, ()))),
            () if cpu in vms_on else tuple(sorted(allowed.get(cpu, ()))),
        )
        for position, cpu in enumerate(added.cpus)
        if any((here := {row: of_cpus[position] for row, of_cpus in rows.items()}).values())
    )
    return LatePosts({row: added.total(row) for row in rows}, cpus, elsewhere, None)
