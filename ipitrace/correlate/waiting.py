# SPDX-License-Identifier: Apache-2.0
"""The time for which vCPUs' threads waited for their CPUs, and which threads ran instead.

Every switch on the vCPUs' CPUs was recorded with the thread before it and the thread after it. This
needs vCPUs that are pinned and that do not sleep.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ipitrace.correlate.stamps import ABSENT, Stamps
from ipitrace.correlate.switches import of_others
from ipitrace.correlate.trace import GuestSide, StormTrace
from ipitrace.words.events import Kind

SEVERAL: Final = -1
"""In place of a thread: several threads in turn, because a switch between them was not recorded."""


_FIELDS: Final = ("cpu", "vcpu", "arg", "word", "detail")
_OUT, _IN = 0, 1


@dataclass(frozen=True)
class Waits:
    """The waiting of one side; arrays have one row for each IPI.

    Attributes:
        cycles: the time between the two stamps of the IPI in which the thread had no CPU; ABSENT
            if a stamp is missing.
        at_send: the thread had no CPU when the IPI was sent.
        by_thread: thread id to the cycles that it ran meanwhile; SEVERAL for several.
    """

    cycles: NDArray[np.int64]
    at_send: NDArray[np.bool_]
    by_thread: Mapping[int, int]


@dataclass(frozen=True)
class Waiting:
    """The waiting in the IPIs of one storm.

    Attributes:
        sender: from the send to the acknowledgement; one row for each send.
        target: from the send to the handler; one row for each send and target, in the order of
            Spans.
    """

    sender: Waits
    target: Waits


@dataclass(frozen=True)
class _Timeline:
    """The threads that ran on one CPU: `threads[i]` from `edges[i - 1]` to `edges[i]`."""

    edges: Stamps
    threads: NDArray[np.int64]

    def ran_at(self, thread: int, tsc: Stamps) -> NDArray[np.bool_]:
        """Whether the thread was running."""
        at = np.searchsorted(self.edges, tsc, side="right")
        return np.asarray(self.threads[at] == thread)

    def ran_between(self, thread: int, low: Stamps, high: Stamps) -> NDArray[np.int64]:
        """The cycles for which the thread ran in each [low, high)."""
        return self._until(thread, high) - self._until(thread, low)

    def _until(self, thread: int, tsc: Stamps) -> NDArray[np.int64]:
        """Cycles for which it ran since the first edge; negative before it."""
        runs = self.threads == thread
        lengths = np.diff(self.edges) * runs[1:-1]
        total = np.concatenate([[0], np.cumsum(lengths)])
        at = np.searchsorted(self.edges, tsc, side="right")
        since = tsc - self.edges[np.maximum(at - 1, 0)]
        return np.asarray(total[np.maximum(at - 1, 0)] + since * runs[at])


def waiting_of(trace: StormTrace, tids: Sequence[int]) -> Waiting | None:
    """The waiting of sender and targets; None if it is not known.

    Args:
        trace: the storm; its vCPUs are pinned, and its events are with those of other threads.
        tids: each vCPU's thread.
    """
    if trace.cpus is None or not trace.complete:
        return None
    switches = _switches(trace)
    involved = {trace.cpus[vcpu] for vcpu in (trace.sender, *trace.targets)}
    timelines = {cpu: _timeline(switches[switches["cpu"] == cpu], tids) for cpu in involved}
    if any(not len(timeline.edges) for timeline in timelines.values()):
        return None  # no thread was switched in or out: it is not known which one ran
    guest, cpus = GuestSide.of(trace), trace.cpus

    def waits(vcpu: int, until: Stamps) -> Waits:
        return _waits(timelines[cpus[vcpu]], tids[vcpu], guest.send, until)

    of_targets = [waits(t, guest.handler[:, i]) for i, t in enumerate(trace.targets)]
    return Waiting(waits(trace.sender, guest.ack), _side_by_side(of_targets))


def switched_out_ns(events: NDArray[np.void], vcpu: int) -> int:
    """The time from each switch of a vCPU's thread out to the next one in; of recorded pairs."""
    own = events[(events["kind"] == Kind.SCHED_SWITCH) & (events["vcpu"] == vcpu)]
    own = own[~of_others(own)]
    own = own[np.argsort(own["ts_ns"], kind="stable")]
    pairs = (own["detail"][:-1] == _OUT) & (own["detail"][1:] == _IN)
    return int((own["ts_ns"][1:] - own["ts_ns"][:-1])[pairs].sum())


def _switches(trace: StormTrace) -> NDArray[np.void]:
    """The records of sched_switch in order of time, with a field `tsc`."""
    chosen = np.flatnonzero(trace.events["kind"] == Kind.SCHED_SWITCH)
    order = chosen[np.lexsort([trace.events["ts_ns"][chosen], trace.event_tsc[chosen]])]
    found = np.zeros(
        len(order),
        [("tsc", "i8"), *((name, "u8") for name in _FIELDS)],
    )
    found["tsc"] = trace.event_tsc[order]
    for name in _FIELDS:
        found[name] = trace.events[name][order]
    return found


def _timeline(switches: NDArray[np.void], tids: Sequence[int]) -> _Timeline:
    """The threads that ran on a CPU, from its recorded switches.

    One switch from a vCPU's thread to another's has two records, of the same two threads.
    """
    own = np.array([*tids], np.int64)[switches["vcpu"]]
    word, arg = switches["word"].astype(np.int64), switches["arg"].astype(np.int64)
    out, in_ = switches["detail"] == _OUT, switches["detail"] == _IN
    before = np.where(out, own, np.where(in_, word, arg))
    after = np.where(in_, own, word)
    again = np.zeros(len(switches), np.bool_)
    again[1:] = (before[1:] == before[:-1]) & (after[1:] == after[:-1]) & in_[1:] & out[:-1]
    edges, before, after = switches["tsc"][~again], before[~again], after[~again]
    between = np.where(after[:-1] == before[1:], after[:-1], SEVERAL)
    return _Timeline(edges, np.concatenate([before[:1], between, after[-1:]]))


def _waits(timeline: _Timeline, thread: int, low: Stamps, high: Stamps) -> Waits:
    known = high != ABSENT
    until = np.where(known, high, low)
    ran = timeline.ran_between(thread, low, until)
    others = (int(t) for t in np.unique(timeline.threads) if t != thread)
    by_thread = {t: int(timeline.ran_between(t, low, until).sum()) for t in others}
    return Waits(
        cycles=np.where(known, until - low - ran, ABSENT),
        at_send=~timeline.ran_at(thread, low),
        by_thread={t: cycles for t, cycles in by_thread.items() if cycles},
    )


def _side_by_side(targets: Sequence[Waits]) -> Waits:
    """The waits of several targets, those of each send adjacent."""
    by_thread: dict[int, int] = {}
    for waits in targets:
        for thread, cycles in waits.by_thread.items():
            by_thread[thread] = by_thread.get(thread, 0) + cycles
    return Waits(
        cycles=np.stack([w.cycles for w in targets], axis=1).reshape(-1),
        at_send=np.stack([w.at_send for w in targets], axis=1).reshape(-1),
        by_thread=by_thread,
    )
