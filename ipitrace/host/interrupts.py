# SPDX-License-Identifier: Apache-2.0
"""/proc/interrupts per CPU: late posts, which nothing else shows, and what CPUs send each other."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ipitrace.host.files import HOST, HostFiles
from ipitrace.words.interrupts import ROWS

PATH: Final = "/proc/interrupts"


# The counts are `unsigned int` (irq_cpustat_t in arch/x86/include/asm/hardirq.h).
_WRAP: Final = 1 << 32


@dataclass(frozen=True)
class InterruptCounts:
    """Counts since boot: `rows[name][i]` belongs to CPU `cpus[i]`; CPUs offline are absent."""

    cpus: tuple[int, ...]
    rows: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class InterruptDelta:
    """What was added between two readings: `rows[name][i]` belongs to CPU `cpus[i]`.

    `cpus` are those online at either reading. None: not known, because the CPU was
    offline at one of them, or because its count fell.
    """

    cpus: tuple[int, ...]
    rows: Mapping[str, tuple[int | None, ...]]

    def total(self, row: str) -> int | None:
        """A row over all CPUs; None where the host lacks the row or a CPU's part is not known."""
        added = self.rows.get(row, (None,))
        known = [n for n in added if n is not None]
        return sum(known) if len(known) == len(added) else None


def parse_interrupts(text: str) -> InterruptCounts:
    """The rows of ROWS that `text` has; a row cut off before its last CPU is none."""
    header, *lines = text.splitlines() or [""]
    names = header.split()
    if not names or not all(name[:3] == "CPU" and name[3:].isdecimal() for name in names):
        return InterruptCounts((), {})
    rows: dict[str, tuple[int, ...]] = {}
    for line in lines:
        name, _, rest = line.strip().partition(":")
        counts = rest.split()[: len(names)]
        if name in ROWS and len(counts) == len(names) and all(n.isdecimal() for n in counts):
            rows[name] = tuple(map(int, counts))
    return InterruptCounts(tuple(int(name[3:]) for name in names), rows)


def read_interrupts(files: HostFiles = HOST) -> InterruptCounts | None:
    """The counts now; None where /proc/interrupts cannot be read."""
    text = files.text(PATH)
    return None if text is None else parse_interrupts(text)


def delta(before: InterruptCounts, after: InterruptCounts) -> InterruptDelta:
    """What was added from `before` to `after`, in the rows that both have.

    A count that wrapped at 32 bits is seen through. An offline CPU keeps its counts, so
    one that left and came back between the readings is known all the same.
    """
    cpus = tuple(sorted({*before.cpus, *after.cpus}))
    rows: dict[str, tuple[int | None, ...]] = {}
    for name in before.rows.keys() & after.rows.keys():
        first = dict(zip(before.cpus, before.rows[name], strict=True))
        last = dict(zip(after.cpus, after.rows[name], strict=True))
        rows[name] = tuple(_added(first.get(cpu), last.get(cpu)) for cpu in cpus)
    return InterruptDelta(cpus, {name: rows[name] for name in ROWS if name in rows})


def _added(first: int | None, last: int | None) -> int | None:
    if first is None or last is None:
        return None
    added = (last - first) % _WRAP
    # More than half the range is no run of ours but a count that went backwards.
    return added if added < _WRAP // 2 else None
