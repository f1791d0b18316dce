# SPDX-License-Identifier: Apache-2.0
"""Rows of /proc/interrupts that ipitrace reads."""

from collections.abc import Collection, Mapping
from typing import Final

# What the rows count, from arch_show_interrupts() in arch/x86/kernel/irq.c. While the CPU is in
# guest mode, the guest handles posted-interrupt notifications without the host. The host counts
# only those that arrive outside guest mode.
ROWS: Final[Mapping[str, str]] = {
    "PIN": "posted-interrupt notifications that found the CPU outside the guest",
    "NPI": "posted-interrupt notifications for a nested guest that found the CPU outside the guest",
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

    A guest that writes the physical ICR itself (Passthrough IPI) can send each of these
    interrupts to another CPU. A posted-interrupt notification has no other cause there, unless
    another VM runs. The host also sends the other kinds itself.

    Args:
        interrupts: row to CPU to increase.
        vm_cpus: the CPUs on which the VM ran.
        rows: the rows to check.
    """
    found: dict[str, dict[int, int]] = {}
    for row in rows:
        for cpu, n in interrupts.get(row, {}).items():
            if n and int(cpu) not in vm_cpus:
                found.setdefault(row, {})[int(cpu)] = n
    return found
