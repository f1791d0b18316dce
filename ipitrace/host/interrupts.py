# SPDX-License-Identifier: Apache-2.0
"""Per-CPU counts of /proc/interrupts: late posts, which have no other source, and host IPIs."""

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
    """Counts since boot: `rows[name][i]` is the count of CPU `cpus[i]`; online CPUs only."""

    cpus: tuple[int, ...]
    rows: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class InterruptDelta:
    """The increase between two readings: `rows[name][i]` is the increase on CPU `cpus[i]`.

    `cpus` are the CPUs that were online at either reading. None means unknown: the CPU was
    offline at one reading (it is then in `hotplugged`), or its count decreased.
    """

    cpus: tuple[int, ...]
    rows: Mapping[str, tuple[int | None, ...]]
    hotplugged: tuple[int, ...]

    def total(self, row: str) -> int | None:
        """The sum of a row. None if the host lacks the row or a CPU's part is unknown."""
        added = self.rows.get(row, (None,))
        known = [n for n in added if n is not None]
        return sum(known) if len(known) == len(added) else None


def parse_interrupts(text: str) -> InterruptCounts:
    """The rows of ROWS in `text`. A row that is cut before its last CPU is ignored."""
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
    """The current counts; None if /proc/interrupts cannot be read."""
    text = files.text(PATH)
    return None if text is None else parse_interrupts(text)


def delta(before: InterruptCounts, after: InterruptCounts) -> InterruptDelta:
    """The increase from `before` to `after`, in the rows that both have.

    A counter that wrapped at 32 bits is handled. An offline CPU keeps its counts, so the increase
    of a CPU that was offline between the readings is known.
    """
    cpus = tuple(sorted({*before.cpus, *after.cpus}))
    rows: dict[str, tuple[int | None, ...]] = {}
    for name in before.rows.keys() & after.rows.keys():
        first = dict(zip(before.cpus, before.rows[name], strict=True))
        last = dict(zip(after.cpus, after.rows[name], strict=True))
        rows[name] = tuple(_added(first.get(cpu), last.get(cpu)) for cpu in cpus)
    return InterruptDelta(
        cpus,
        {name: rows[name] for name in ROWS if name in rows},
        tuple(sorted({*before.cpus} ^ {*after.cpus})),
    )


def _added(first: int | None, last: int | None) -> int | None:
    if first is None or last is None:
        return None
    added = (last - first) % _WRAP
    # An increase of more than half the range means that the counter decreased.
    return added if added < _WRAP // 2 else None
