# SPDX-License-Identifier: Apache-2.0
"""Late posts of an interval, and where the watched vCPUs were meanwhile."""

from collections.abc import Mapping
from typing import Final

from ipitrace.host.interrupts import PATH, InterruptCounts, delta
from ipitrace.watch.model import CpuPosts, LatePosts

ROWS: Final = ("PIN", "NPI", "PIW")


def late_posts(
    before: InterruptCounts | None, after: InterruptCounts | None, vms_on: Mapping[int, set[str]]
) -> LatePosts:
    """What was added between two readings; `vms_on`: the VMs whose vCPUs were seen, by CPU."""
    if before is None or after is None:
        return LatePosts(None, (), f"{PATH} cannot be read")
    added = delta(before, after)
    rows = [row for row in ROWS if row in added.rows]
    if not rows:
        return LatePosts(None, (), f"{PATH} has no rows {', '.join(ROWS)}")
    cpus = tuple(
        CpuPosts(cpu, here, tuple(sorted(vms_on.get(cpu, ()))))
        for position, cpu in enumerate(added.cpus)
        if any((here := {row: added.rows[row][position] for row in rows}).values())
    )
    return LatePosts({row: added.total(row) for row in rows}, cpus, None)
