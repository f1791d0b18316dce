# SPDX-License-Identifier: Apache-2.0
"""Two readings of /proc/interrupts, with \\0 between, and what was added."""

from ipitrace.host.interrupts import delta, parse_interrupts
from ipitrace.words.interrupts import ROWS, arrived_elsewhere


def fuzz(data: bytes) -> None:
    before, _, after = data.decode(errors="replace").partition("\0")
    added = delta(parse_interrupts(before), parse_interrupts(after))
    for row in ROWS:
        added.total(row)
    known = {
        row: {str(cpu): n or 0 for cpu, n in zip(added.cpus, counts, strict=True)}
        for row, counts in added.rows.items()
    }
    arrived_elsewhere(known, {0}, ROWS)
