# SPDX-License-Identifier: Apache-2.0
"""Rows of /proc/interrupts that ipitrace reads."""

from collections.abc import Collection, Mapping
from typing import Final

# What the rows count, from arch_show_interrupts() in arch/x86/kernel/irq.c. The posted-interrupt
# ones are handled by the guest without the host as long as its CPU is in guest mode: what the
# host counts came too late for that.
ROWS: Final[Mapping[str, str]] = {
    "PIN": "posted-interrupt notifications that found the CPU outside the guest",
    "NPI": "the same for a nested guest",
    "PIW": "posted interrupts that woke a blocked vCPU",
    "RES": "reschedule IPIs",
    "CAL": "function-call IPIs",
    "IWI": "IPIs of a CPU to itself for deferred work",
    "NMI": "non-maskable interrupts",
    "LOC": "local timer interrupts",
    "TRM": "thermal interrupts",
    "SPU": "spurious interrupts",
}


POSTED_ROWS: Final = ("PIN", "NPI", "PIW")


def arrived_elsewhere(
    interrupts: Mapping[str, Mapping[str, int]],
    vm_cpus: Collection[int],
    rows: Collection[str] = POSTED_ROWS,
) -> dict[str, dict[int, int]]:
    """Interrupts on CPUs that did not run the VM: row to CPU to increase.

    A guest that writes the physical ICR itself (Passthrough IPI) can send any of them
    there. Notifications of posted interrupts have no other reason to be there, unless
    another VM runs; the host sends the others itself, too.

    Args:
        interrupts: row to CPU to increase.
        vm_cpus: where the VM ran.
        rows: which to tell of.
    """
    found: dict[str, dict[int, int]] = {}
    for row in rows:
        for cpu, n in interrupts.get(row, {}).items():
            if n and int(cpu) not in vm_cpus:
                found.setdefault(row, {})[int(cpu)] = n
    return found
