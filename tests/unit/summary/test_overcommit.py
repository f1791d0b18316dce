# SPDX-License-Identifier: Apache-2.0
"""What sharing CPUs did: from the waiting of single storms to the part of the row."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from checks import told_in_vain, unexplained_nulls
from strategies import left_alone, receipts, recorded, sends, storm

from ipitrace.base.loading import unload
from ipitrace.correlate.stamps import ABSENT
from ipitrace.correlate.waiting import SEVERAL, Waiting, Waits
from ipitrace.recording.row import Occupant, Overcommit, PerSide, ScenarioResult
from ipitrace.summary import Measured, Repetition, Waited, summarise_scenario
from ipitrace.words.events import Kind
from ipitrace.words.exit_reasons import Isa
from ipitrace.words.scenarios import select_scenarios
from ipitrace.words.threads import NamedThread, ThreadKind

OVERCOMMIT, RUNNING = select_scenarios(["unicast-overcommit", "unicast-running"])
YIELDS = ({"directed_yield_attempted": 0, "directed_yield_successful": 0, "exits": 0},) * 2
YIELDED = (
    {"directed_yield_attempted": 6, "directed_yield_successful": 3, "exits": 9},
    {"directed_yield_attempted": 0, "directed_yield_successful": 0, "exits": 9},
)
# Three sends to one target; D is 40, 500 and 60.
STORM = storm(
    sends([(1000, 1010, 1100), (2000, 2020, 2600), (3000, 3030, 3300)]),
    [receipts([]), receipts([1040, 2500, 3060])],
    stats=(YIELDS, YIELDED),
)
NAMES = {
    0: NamedThread(ThreadKind.IDLE, "idle"),
    8: NamedThread(ThreadKind.PROCESS, "stress (pid 8)"),
    9: NamedThread(ThreadKind.PROCESS, "stress (pid 8)"),
}


def waits(cycles: list[int], by_thread: Mapping[int, int], off: tuple[bool, ...] = ()) -> Waits:
    at_send = np.array(off or (False,) * len(cycles), np.bool_)
    return Waits(np.array(cycles, np.int64), at_send, by_thread)


TARGET = waits([0, 440, 0], {8: 200, 9: 130, 77: 66, SEVERAL: 44}, (False, True, False))
WAITED = Waited(Waiting(waits([0, 100, 0], {0: 100}), TARGET), NAMES, 2_000_000_000, 2_100_000_000)


def repetition(waited: Waited | None = WAITED, **traced: Any) -> Repetition:
    one = recorded(STORM, (1,), **traced)
    assert one.watched is not None
    return replace(one, watched=replace(one.watched, waited=waited))


def row_of(*repetitions: Repetition, **changes: Any) -> ScenarioResult:
    fields: dict[str, Any] = {"cpus": (3, 3)} | changes
    row = summarise_scenario(Measured(OVERCOMMIT, (1,), 500, 100, 1, repetitions, **fields))
    assert unexplained_nulls(unload(row)) == []
    assert told_in_vain(unload(row)) == []
    return row


def overcommit_of(*repetitions: Repetition, **changes: Any) -> Overcommit:
    found = row_of(*repetitions, **changes).overcommit
    assert found is not None
    return found


def test_d_is_split_by_whether_the_target_waited() -> None:
    found = overcommit_of(repetition())
    assert (found.cpus, found.vcpus_per_cpu) == ((3, 3), 2)
    assert found.deliver_running is not None
    assert found.deliver_waiting is not None
    assert (found.deliver_running.count, found.deliver_running.max) == (2, 60)
    assert (found.deliver_waiting.count, found.deliver_waiting.p50) == (1, 500)
    assert found.sides is not None
    sender, target = found.sides
    assert (sender.side, sender.ipis, sender.off_at_send) == ("sender", 3, None)
    assert (target.side, target.ipis) == ("target", 3)
    assert sender.waited == target.waited == target.off_at_send == pytest.approx(1 / 3)
    assert target.waited_cycles is not None
    assert target.waited_cycles.max == 440
    assert (found.switched_out_s, found.run_delay_s) == (2.0, 2.1)


def test_threads_of_one_name_are_added_up_the_largest_first() -> None:
    sides = overcommit_of(repetition()).sides
    assert sides is not None
    assert sides[1].occupants == (
        Occupant("process", "stress (pid 8)", 0.75),
        Occupant("ended", "threads that had ended", 0.15),
        Occupant("several", "several threads", 0.1),
    )
    assert sides[0].occupants == (Occupant("idle", "idle", 1.0),)


def test_many_threads_are_added_up_to_others() -> None:
    names = {tid: NamedThread(ThreadKind.PROCESS, f"p (pid {tid})") for tid in range(1, 41)}
    crowd = waits([400, 0, 0], dict.fromkeys(names, 10))
    sides = overcommit_of(
        repetition(replace(WAITED, waiting=Waiting(crowd, crowd), names=names))
    ).sides
    assert sides is not None
    *first, last = sides[0].occupants
    assert len(first) == 16
    assert last == Occupant("others", "other threads", pytest.approx(24 / 40))


def test_repetitions_are_pooled() -> None:
    found = overcommit_of(repetition(), repetition())
    assert found.sides is not None
    assert [side.ipis for side in found.sides] == [6, 6]
    assert found.switched_out_s == 4.0
    assert found.deliver_running is not None
    assert found.deliver_running.count == 4


def test_an_ipi_without_a_handler_is_not_counted() -> None:
    lost = waits([0, ABSENT, 0], {}, (False, True, False))
    found = overcommit_of(repetition(replace(WAITED, waiting=Waiting(lost, lost))))
    assert found.sides is not None
    assert [(s.ipis, s.waited, s.waited_cycles) for s in found.sides] == [(2, 0.0, None)] * 2
    assert found.sides[1].off_at_send == 0.0


def test_exits_updates_and_yields_per_ipi() -> None:
    pauses = [(at, vcpu, int(Isa.VMX), 40) for at in (1005, 2005) for vcpu in (0, 1)]
    others = [(3005, 0, int(Isa.VMX), 32)]
    seen = {(Kind.KVM_PLE_WINDOW_UPDATE, 1): 6}
    found = overcommit_of(repetition(exits=pauses + others, seen=seen))
    assert found.ple_exits == PerSide(pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert found.ple_window_updates == PerSide(0.0, 2.0)
    assert found.yields_attempted == PerSide(2.0, 0.0)
    assert found.yields_successful == PerSide(1.0, 0.0)
    svm = [(1005, 0, int(Isa.SVM), 0x77)]
    assert overcommit_of(repetition(exits=svm)).ple_exits == PerSide(pytest.approx(1 / 3), 0.0)


def test_what_is_not_known_has_a_reason() -> None:
    row = row_of(repetition(None), left_out={"kvm_ple_window_update": "not in this kernel"})
    found, absent = row.overcommit, row.absent
    assert found is not None
    assert absent is not None
    assert found.ple_exits is None
    assert absent["overcommit.ple_exits"].startswith("kvm_exit never fired")
    assert found.ple_window_updates is None
    assert absent["overcommit.ple_window_updates"] == "not in this kernel"
    assert found.sides is None
    assert "not recorded completely" in absent["overcommit.sides"]


def test_nothing_traced() -> None:
    row = row_of(left_alone(replace(STORM, start=None, end=None), (1,)))
    assert row.absent is not None
    assert row.absent["overcommit.sides"] == "nothing was traced"
    assert row.absent["overcommit.yields_attempted"].startswith("only the VMM")
    old = replace(STORM.start, stats=({"exits": 1},) * 2) if STORM.start else None
    row = row_of(left_alone(replace(STORM, start=old, end=old), (1,)))
    assert row.absent is not None
    assert row.absent["overcommit.yields_attempted"] == (
        "this KVM's statistics have no directed_yield_attempted"
    )


def test_no_schedstat() -> None:
    row = row_of(repetition(replace(WAITED, run_delay_ns=None)))
    assert row.absent is not None
    assert row.absent["overcommit.run_delay_s"] == "the kernel has no schedstat"


def test_other_scenarios_have_none() -> None:
    row = summarise_scenario(Measured(RUNNING, (1,), 500, 100, 1, (repetition(),), cpus=(3, 4)))
    assert row.overcommit is None
    assert "overcommit" not in unload(row)
