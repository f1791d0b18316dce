# SPDX-License-Identifier: Apache-2.0
"""Made-up storms: what a guest could have logged, with the truth known beforehand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from ipitrace.abi.events import HOST_EVENT
from ipitrace.abi.storm import RECEIPT, SEND
from ipitrace.correlate.exits import exit_tables
from ipitrace.correlate.spans import StormTrace, correlate
from ipitrace.host.interrupts import InterruptDelta
from ipitrace.storm.driver import Mark, Storm
from ipitrace.summary import HostSide, Repetition, reduce_storm
from ipitrace.words.events import NR_KINDS, Kind
from ipitrace.words.scenarios import Mode, Route

CYCLES = st.integers(1, 1 << 50)


def samples(*, min_size: int = 1) -> st.SearchStrategy[NDArray[np.int64]]:
    """Cycle counts as they come out of a storm, ties and huge ones among them."""
    values = st.one_of(st.integers(0, 5), CYCLES, st.integers(-(1 << 62), 1 << 62))
    return st.lists(values, min_size=min_size, max_size=300).map(
        lambda numbers: np.array(numbers, np.int64)
    )


def sends(stamps: Sequence[tuple[int, int, int]], target: int = 1) -> NDArray[np.void]:
    """A sender's log from (send, sent, ack) stamps."""
    log = np.zeros(len(stamps), SEND)
    for i, (send_tsc, sent_tsc, ack_tsc) in enumerate(stamps):
        log[i] = (send_tsc, sent_tsc, ack_tsc, i, target, 0)
    return log


def receipts(stamps: Sequence[int]) -> NDArray[np.void]:
    """A handler's log from its first-instruction stamps."""
    log = np.zeros(len(stamps), RECEIPT)
    log["handler_tsc"] = stamps
    log["eoi_tsc"] = log["handler_tsc"] + 1
    log["seq"] = np.arange(len(stamps))
    return log


@dataclass(frozen=True)
class Truth:
    """A lossless storm of one sender and one target, and its true cycles."""

    send: tuple[int, ...]
    deliver: tuple[int, ...]
    round_trip: tuple[int, ...]
    sends: NDArray[np.void]
    receipts: NDArray[np.void]


@st.composite
def truths(draw: st.DrawFn, *, min_size: int = 1) -> Truth:
    """Storms whose every send is handled before the next is made."""
    n = draw(st.integers(min_size, 40))
    step = st.integers(1, 1 << 40)
    now = draw(st.integers(1, 1 << 60))
    s, d, r, stamps, handled = [], [], [], [], []
    for _ in range(n):
        s.append(draw(step))
        d.append(draw(step))
        r.append(max(s[-1], d[-1]) + draw(step))
        stamps.append((now, now + s[-1], now + r[-1]))
        handled.append(now + d[-1])
        now += r[-1] + draw(step)
    return Truth(tuple(s), tuple(d), tuple(r), sends(stamps), receipts(handled))


def storm(
    log: NDArray[np.void],
    handled: Sequence[NDArray[np.void]],
    *,
    stats: tuple[Sequence[Mapping[str, int]], Sequence[Mapping[str, int]]] | None = None,
    seen: NDArray[np.uint64] | None = None,
) -> Storm:
    """A storm of these logs, one receipt log for each vCPU, and KVM counters at its edges."""
    before, after = stats if stats is not None else (None, None)
    nothing_seen = None if seen is None else np.zeros_like(seen)
    return Storm(
        sends=log,
        receipts=tuple(handled),
        handled=tuple(map(len, handled)),
        incomplete=int(np.count_nonzero(log["ack_tsc"] == 0)),
        spurious=0,
        start=Mark(1_000, None if before is None else tuple(map(dict, before)), nothing_seen),
        end=Mark(2_000, None if after is None else tuple(map(dict, after)), seen),
        tsc_offset=0,
        tsc_khz=2_000_000,
    )


def counts(n_vcpus: int, seen: Mapping[tuple[Kind, int], int]) -> NDArray[np.uint64]:
    """Event counts per kind and vCPU."""
    table = np.zeros((NR_KINDS, n_vcpus), np.uint64)
    for (kind, vcpu), count in seen.items():
        table[kind, vcpu] = count
    return table


def left_alone(one: Storm, targets: Sequence[int]) -> Repetition:
    """`one` as a repetition without any probe."""
    return reduce_storm(one, [Route(0, tuple(targets))], Mode.OFF)


def recorded(
    one: Storm,
    targets: Sequence[int],
    *,
    seen: Mapping[tuple[Kind, int], int] | None = None,
    exits: Sequence[tuple[int, int, int, int]] = (),
    interrupts: InterruptDelta | None = None,
) -> Repetition:
    """`one` as a recorded repetition, with these counts and exits (tsc, vcpu, isa, reason)."""
    n_vcpus = len(one.handled)
    events = np.zeros(len(exits), HOST_EVENT)
    for i, (_tsc, vcpu, isa, reason) in enumerate(exits):
        events[i]["kind"] = Kind.KVM_EXIT
        events[i]["vcpu"], events[i]["detail"], events[i]["word"] = vcpu, isa, reason
    trace = StormTrace(
        sends=one.sends,
        receipts=one.receipts,
        sender=0,
        targets=targets,
        vector=0xF0,
        events=events,
        event_tsc=np.array([tsc for tsc, *_ in exits], np.int64),
        bound_cycles=1,
        cpus=None,
        complete=True,
        exits_fire=bool(exits),
    )
    spans = correlate(trace)
    watched = HostSide(spans, exit_tables(trace, spans), interrupts)
    counted = counts(n_vcpus, seen or {}).astype(np.int64)
    return reduce_storm(one, [Route(0, tuple(targets))], Mode.EVIDENCE, watched, seen=counted)
