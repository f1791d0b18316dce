# SPDX-License-Identifier: Apache-2.0
"""The senders of a guest's IPIs, and the tracepoints that show them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

VERSION: Final = 1
"""Of the JSON document."""


class Method(StrEnum):
    """How the guest's kernel counted the events of a tracepoint."""

    HISTOGRAM = "histogram"  # by a histogram trigger, in the kernel: exact
    RECORDS = "records"  # by the records in the instance's ring buffer, which can be full


@dataclass(frozen=True)
class Tracepoint:
    """A tracepoint that fires where an IPI is sent, or where its cause is queued.

    Attributes:
        system, event: its name in tracefs.
        callback: the field with the function that is to run.
        meaning: one event of it.
        since: the Linux version that has it first.
    """

    system: str
    event: str
    callback: str
    meaning: str
    since: str

    @property
    def name(self) -> str:
        """As perf spells it."""
        return f"{self.system}:{self.event}"

    @property
    def path(self) -> str:
        """Its folder below `events` in tracefs."""
        return f"{self.system}/{self.event}"


# include/trace/events/ipi.h and csd.h. Kernels before `since` lack the header, or the event in it.
TO_ONE: Final = Tracepoint("ipi", "ipi_send_cpu", "callback", "IPIs to one CPU", "6.4")
TO_MASK: Final = Tracepoint(
    "ipi", "ipi_send_cpumask", "callback", "sends to a mask of CPUs at once", "6.4"
)
QUEUED: Final = Tracepoint("csd", "csd_queue_cpu", "func", "calls queued for another CPU", "6.5")
TRACEPOINTS: Final = (TO_ONE, TO_MASK, QUEUED)


@dataclass(frozen=True)
class Sender:
    """One call site with one callback.

    Attributes:
        callsite: the kernel function that sends, or that calls the function that sends.
        callback: the function that the target is to run; None if it runs none (a reschedule).
        count: events.
        targets: mean number of CPUs to which one event sends; None if it is not known, or if the
            event sends none by itself.
    """

    callsite: str
    callback: str | None
    count: int
    targets: float | None = None


@dataclass(frozen=True)
class Source:
    """What one tracepoint showed.

    Attributes:
        method: None if the guest's kernel lacks the tracepoint.
        uncounted: events that the histogram had no room for: their call sites are not known.
        senders: the most frequent first.
    """

    tracepoint: Tracepoint
    method: Method | None
    uncounted: int
    senders: tuple[Sender, ...]

    @property
    def count(self) -> int:
        """All events, including those whose call sites are not known."""
        return self.uncounted + sum(sender.count for sender in self.senders)


@dataclass(frozen=True)
class Senders:
    """What a guest reported.

    Attributes:
        kernel: its release.
        duration_s: how long was counted, by the guest's clock.
        sources: one for each of TRACEPOINTS, in their order.
        lost_records: events that the ring buffer had no room for, or that did not fit the answer.
    """

    kernel: str
    duration_s: float
    sources: tuple[Source, ...]
    lost_records: int

    def rate(self, source: Source, count: int) -> float | None:
        """Events per second; None if records of them were lost."""
        if source.method is Method.RECORDS and self.lost_records:
            return None
        return count / self.duration_s

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        return {
            "version": VERSION,
            "kernel": self.kernel,
            "duration_s": self.duration_s,
            "lost_records": self.lost_records,
            "sources": [self._source(source) for source in self.sources],
        }

    def _source(self, source: Source) -> dict[str, Any]:
        known = source.method is not None
        return {
            "tracepoint": source.tracepoint.name,
            "since_linux": source.tracepoint.since,
            "method": source.method,
            "count": source.count if known else None,
            "per_s": self.rate(source, source.count) if known else None,
            "uncounted": source.uncounted if known else None,
            "senders": [
                {
                    "callsite": sender.callsite,
                    "callback": sender.callback,
                    "count": sender.count,
                    "per_s": self.rate(source, sender.count),
                    "share": sender.count / source.count,
                    "targets_per_send": sender.targets,
                }
                for sender in source.senders
            ],
        }


def missing(tracepoints: Iterable[Tracepoint]) -> Iterator[str]:
    """For each tracepoint that a kernel lacks, which Linux has it."""
    for tracepoint in tracepoints:
        yield f"{tracepoint.name} exists since Linux {tracepoint.since}"
