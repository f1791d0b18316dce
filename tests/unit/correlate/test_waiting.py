# SPDX-License-Identifier: Apache-2.0
"""Waiting for a CPU, from made-up schedules of which every cycle is known."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import receipts, sends

from ipitrace.abi.events import HOST_EVENT
from ipitrace.correlate.spans import StormTrace
from ipitrace.correlate.stamps import ABSENT
from ipitrace.correlate.switches import Switches, count_switches, of_others
from ipitrace.correlate.waiting import SEVERAL, Waiting, Waits, switched_out_ns, waiting_of
from ipitrace.words.events import Kind

TIDS = (100, 101, 102, 103)
CPUS = (4, 7, 4, 7)
OTHERS = (0, 55, 56)
ENDS = 1_000

Schedule = Sequence[tuple[int, int]]
"""Of one CPU: the times of its switches, and the thread that runs from then on."""


def records(cpu: int, schedule: Schedule) -> list[tuple[int, dict[str, int]]]:
    """What bpf/sched.bpf.c records of a CPU's switches."""
    found = []
    for (_, before), (tsc, after) in pairwise(schedule):
        out, in_ = before in TIDS, after in TIDS
        if out:
            found.append((tsc, {"vcpu": TIDS.index(before), "word": after, "detail": 0}))
        if in_:
            found.append((tsc, {"vcpu": TIDS.index(after), "word": before, "detail": 1}))
        if not out and not in_:
            owner = CPUS.index(cpu)
            found.append((tsc, {"vcpu": owner, "arg": before, "word": after, "detail": 2}))
    return [(tsc, {"cpu": cpu, **record}) for tsc, record in found]


def events_of(*schedules: tuple[int, Schedule]) -> tuple[Any, Any]:
    found = [record for cpu, schedule in schedules for record in records(cpu, schedule)]
    found.sort(key=lambda record: record[0])
    events = np.zeros(len(found), HOST_EVENT)
    events["kind"] = Kind.SCHED_SWITCH
    for i, (tsc, record) in enumerate(found):
        events[i]["ts_ns"] = tsc
        for name, value in record.items():
            events[i][name] = value
    return events, np.array([tsc for tsc, _ in found], np.int64)


def trace_of(
    *schedules: tuple[int, Schedule],
    stamps: Sequence[tuple[int, int, int]],
    targets: Sequence[int] = (1,),
    **changes: Any,
) -> StormTrace:
    """IPIs with these stamps of send, handler and acknowledgement; the last 0 is a time-out."""
    events, tsc = events_of(*schedules)
    handled = [
        receipts([handler for _, handler, _ in stamps]) if v else receipts([]) for v in range(4)
    ]
    fields: dict[str, Any] = {
        "sends": sends([(send, send + 1, ack) for send, _, ack in stamps]),
        "receipts": handled,
        "sender": 0,
        "targets": targets,
        "vector": 0xF0,
        "events": events,
        "event_tsc": tsc,
        "bound_cycles": 1,
        "cpus": CPUS,
        "complete": True,
        "exits_fire": False,
    }
    return StormTrace(**fields | changes)


def ran(schedule: Schedule, tsc: int) -> int:
    """The thread that ran in the cycle."""
    return [thread for since, thread in schedule if since <= tsc][-1]


@st.composite
def schedules(draw: st.DrawFn, own: Sequence[int]) -> Schedule:
    """The threads of one CPU in turn, with a switch at least."""
    times = draw(st.lists(st.integers(1, ENDS), min_size=1, max_size=30, unique=True))
    threads = [draw(st.sampled_from([*own, *OTHERS]))]
    for _ in times:
        threads.append(draw(st.sampled_from([t for t in (*own, *OTHERS) if t != threads[-1]])))
    return list(zip([-1, *sorted(times)], threads, strict=True))


@given(
    schedules((100, 102)),
    schedules((101, 103)),
    st.lists(st.integers(0, ENDS), min_size=3, max_size=30, unique=True),
)
def test_every_cycle_is_someone_s(first: Schedule, second: Schedule, times: list[int]) -> None:
    ordered = sorted(times)
    stamps = list(zip(ordered[::3], ordered[1::3], ordered[2::3], strict=False))
    found = waiting_of(trace_of((4, first), (7, second), stamps=stamps), TIDS)
    assert found is not None
    for waits, schedule, thread, until in (
        (found.sender, first, 100, 2),
        (found.target, second, 101, 1),
    ):
        by_thread: dict[int, int] = {}
        for i, stamp in enumerate(stamps):
            instead = [ran(schedule, tsc) for tsc in range(stamp[0], stamp[until])]
            others = [t for t in instead if t != thread]
            assert waits.cycles[i] == len(others)
            assert waits.at_send[i] == (ran(schedule, stamp[0]) != thread)
            for other in others:
                by_thread[other] = by_thread.get(other, 0) + 1
        assert waits.by_thread == by_thread


BOTH = ((4, [(-1, 100), (500, 102)]), (7, [(-1, 103), (30, 101), (60, 55), (80, 101)]))


def waits_of(found: Waiting | None) -> Waits:
    assert found is not None
    return found.target


def test_a_target_that_waits_when_the_ipi_comes_and_again_later() -> None:
    waits = waits_of(waiting_of(trace_of(*BOTH, stamps=[(10, 100, 110), (120, 130, 140)]), TIDS))
    assert waits.cycles.tolist() == [20 + 20, 0]
    assert waits.at_send.tolist() == [True, False]
    assert waits.by_thread == {103: 20, 55: 20}


def test_targets_of_a_broadcast_are_side_by_side() -> None:
    trace = trace_of(*BOTH, stamps=[(10, 100, 110), (120, 130, 140)], targets=(1, 2, 3))
    waits = waits_of(waiting_of(trace, TIDS))
    assert waits.cycles.tolist() == [40, 90, 70, 0, 10, 10]
    assert waits.at_send.tolist() == [True, True, False, False, True, True]


def test_without_a_handler_the_waiting_is_not_known() -> None:
    trace = trace_of(*BOTH, stamps=[(10, 100, 110), (120, 130, 0)])
    lost = (receipts([]), receipts([100]), receipts([]), receipts([]))
    found = waiting_of(StormTrace(**vars(trace) | {"receipts": lost}), TIDS)
    assert found is not None
    assert found.target.cycles.tolist() == [40, ABSENT]
    assert found.sender.cycles.tolist() == [0, ABSENT]


def test_a_switch_that_was_not_recorded_leaves_several_threads() -> None:
    trace = trace_of(*BOTH, stamps=[(10, 100, 110)])
    # The record of 103's switch out is lost, and with it the one of 101's switch in.
    lost = ~((trace.event_tsc == 30) & (trace.events["cpu"] == 7))
    rest = {"events": trace.events[lost], "event_tsc": trace.event_tsc[lost]}
    waits = waits_of(waiting_of(StormTrace(**vars(trace) | rest), TIDS))
    assert waits.by_thread == {55: 20}
    between = trace_of(
        (4, [(-1, 100), (500, 102)]),
        (7, [(-1, 103), (30, 55), (60, 56), (80, 101)]),
        stamps=[(10, 100, 110)],
    )
    kept = ~of_others(between.events)
    rest = {"events": between.events[kept], "event_tsc": between.event_tsc[kept]}
    waits = waits_of(waiting_of(StormTrace(**vars(between) | rest), TIDS))
    assert waits.by_thread == {103: 20, SEVERAL: 50}


@pytest.mark.parametrize(
    "changes",
    [{"cpus": None}, {"complete": False}, {"events": np.zeros(0, HOST_EVENT)}],
    ids=["not pinned", "events lost", "no switch"],
)
def test_when_the_waiting_is_not_known(changes: dict[str, Any]) -> None:
    if "events" in changes:
        changes = {**changes, "event_tsc": np.zeros(0, np.int64)}
    assert waiting_of(trace_of(*BOTH, stamps=[(10, 100, 110)], **changes), TIDS) is None


def test_time_out_of_a_cpu_is_from_a_switch_out_to_the_next_in() -> None:
    events, _ = events_of(*BOTH)
    assert switched_out_ns(events, 1) == 20
    assert switched_out_ns(events, 3) == 0  # it does not come back
    assert switched_out_ns(events[::-1], 1) == 20


def test_switches_of_others_are_not_those_of_their_vcpu() -> None:
    events, _ = events_of((7, [(-1, 101), (10, 55), (20, 56), (30, 0), (40, 101)]))
    assert np.count_nonzero(of_others(events)) == 2
    assert count_switches(events[~of_others(events)]) == Switches(2, 0)
    assert switched_out_ns(events, 1) == 30
