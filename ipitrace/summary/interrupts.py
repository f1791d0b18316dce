# SPDX-License-Identifier: Apache-2.0
"""What rows of /proc/interrupts moved by over a scenario's recorded repetitions."""

from collections.abc import Collection, Mapping, Sequence

from ipitrace.summary.storms import Watched

POSTED_ROWS = ("PIN", "NPI", "PIW")


def host_interrupts(watched: Sequence[Watched]) -> dict[str, dict[str, int]] | None:
    """Row of /proc/interrupts to CPU to increase; a row with an unknown part is left out."""
    deltas = [w.interrupts for w in watched if w.interrupts is not None]
    if not deltas:
        return None
    total: dict[str, dict[str, int]] = {}
    for row in deltas[0].rows:
        if any(delta.total(row) is None for delta in deltas):
            continue
        per_cpu = total.setdefault(row, {})
        for delta in deltas:
            for cpu, n in zip(delta.cpus, delta.rows[row], strict=True):
                per_cpu[str(cpu)] = per_cpu.get(str(cpu), 0) + (n or 0)
    return total


def arrived_elsewhere(
    interrupts: Mapping[str, Mapping[str, int]],
    vm_cpus: Collection[int],
    rows: Collection[str] = POSTED_ROWS,
) -> dict[str, dict[int, int]]:
    """Interrupts on CPUs that never ran the VM: row to CPU to increase.

    A guest that writes the physical ICR itself (Passthrough IPI) can send any of them
    there. Notifications of posted interrupts have no other reason to be there, unless
    another VM runs; the host sends the others itself, too.

    Args:
        interrupts: what host_interrupts() answered.
        vm_cpus: where the VM's vCPUs were pinned.
        rows: which to tell of.
    """
    found: dict[str, dict[int, int]] = {}
    for row in rows:
        for cpu, n in interrupts.get(row, {}).items():
            if n and int(cpu) not in vm_cpus:
                found.setdefault(row, {})[int(cpu)] = n
    return found
