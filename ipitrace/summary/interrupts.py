# SPDX-License-Identifier: Apache-2.0
"""Increases of rows of /proc/interrupts over a scenario's recorded repetitions."""

from collections.abc import Sequence

from ipitrace.summary.storms import HostSide


def host_interrupts(watched: Sequence[HostSide]) -> dict[str, dict[str, int]] | None:
    """Row of /proc/interrupts to CPU to increase; a row with an unknown part is excluded."""
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
