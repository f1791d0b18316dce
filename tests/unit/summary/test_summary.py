# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import numpy as np
import pytest
from checks import told_in_vain, unexplained_nulls
from hypothesis import given
from hypothesis import strategies as st
from strategies import Truth, left_alone, receipts, recorded, sends, storm, truths

from ipitrace.base.loading import unload
from ipitrace.host.interrupts import InterruptDelta
from ipitrace.recording.result import PairedDifference
from ipitrace.recording.row import PerSide, ScenarioResult
from ipitrace.summary import Measured, Repetition, observer_costs, reduce_storm, summarise_scenario
from ipitrace.summary.exits import KVM_EXIT_SOURCE, KVM_EXIT_UNSORTED, KVM_STATS_SOURCE
from ipitrace.words.events import Kind
from ipitrace.words.exit_reasons import Isa
from ipitrace.words.scenarios import MODES, SCENARIOS, Mode, Pattern, Route, routes_of

BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}
NOBODY = receipts([])
STATS = ({"exits": 10, "halt_exits": 4, "l1d_flush": 7}, {"exits": 30, "halt_exits": 0})

# Three sends to one target; S is 10, 20, 30, D 40, 50, 60, R 100, 200, 300.
THREE = sends([(1000, 1010, 1100), (2000, 2020, 2200), (3000, 3030, 3300)])
THREE_HANDLED = receipts([1040, 2050, 3060])
PLAIN = storm(THREE, [NOBODY, THREE_HANDLED])


def row_of(name: str, *repetitions: Repetition, targets: tuple[int, ...] = (1,)) -> ScenarioResult:
    """The row of these repetitions, after the checks that hold of every row."""
    measured = Measured(BY_NAME[name], targets, 500, 100, 1, repetitions)
    row = summarise_scenario(measured)
    assert unexplained_nulls(unload(row)) == []
    assert told_in_vain(unload(row)) == []
    return row


def test_a_plain_storm() -> None:
    row = row_of("unicast-running", recorded(PLAIN, (1,)))
    assert (row.sent, row.delivered, row.coalesced, row.incomplete) == (3, 3, 0, 0)
    assert (row.targets, row.repetitions, row.pace_cycles, row.warmup) == (1, 1, 500, 100)
    figures = [row.send_cycles, row.deliver_cycles, row.round_trip_cycles]
    assert [(f.min, f.p50, f.p99, f.max) for f in figures if f] == [
        (10, 20, 30, 30),
        (40, 50, 60, 60),
        (100, 200, 300, 300),
    ]


@given(st.lists(truths(), min_size=1, max_size=3))
def test_repetitions_are_pooled(them: list[Truth]) -> None:
    storms = [storm(truth.sends, [NOBODY, truth.receipts]) for truth in them]
    row = row_of("unicast-running", *(left_alone(s, (1,)) for s in storms))
    pooled = [sorted(c for t in them for c in cycles(t)) for cycles in (_s, _d, _r)]
    for figures, cycles in zip(
        (row.send_cycles, row.deliver_cycles, row.round_trip_cycles), pooled, strict=True
    ):
        assert figures is not None
        assert (figures.count, figures.min, figures.max) == (len(cycles), cycles[0], cycles[-1])
        assert {figures.p50, figures.p90, figures.p99} <= set(cycles)


def _s(truth: Truth) -> tuple[int, ...]:
    return truth.send


def _d(truth: Truth) -> tuple[int, ...]:
    return truth.deliver


def _r(truth: Truth) -> tuple[int, ...]:
    return truth.round_trip


def test_the_timings_are_those_of_untraced_repetitions() -> None:
    slow = sends([(0, 9000, 9500)])
    row = row_of(
        "unicast-running",
        recorded(storm(slow, [NOBODY, receipts([9100])]), (1,)),
        left_alone(PLAIN, (1,)),
    )
    assert (row.sent, row.repetitions) == (3, 1)
    assert row.send_cycles is not None
    assert row.send_cycles.max == 30


def test_a_merged_delivery_is_coalesced() -> None:
    row = row_of(
        "unicast-running", left_alone(storm(THREE, [NOBODY, receipts([1040, 3060])]), (1,))
    )
    assert (row.sent, row.delivered, row.coalesced, row.incomplete) == (3, 2, 1, 0)
    assert row.deliver_cycles is not None
    assert (row.deliver_cycles.min, row.deliver_cycles.max) == (40, 60)


def test_a_lost_ipi_is_incomplete_and_not_coalesced() -> None:
    log = THREE.copy()
    log["ack_tsc"][1] = 0
    row = row_of("unicast-running", left_alone(storm(log, [NOBODY, receipts([1040, 3060])]), (1,)))
    assert (row.sent, row.delivered, row.coalesced, row.incomplete) == (3, 2, 0, 1)
    assert row.round_trip_cycles is not None
    assert (row.round_trip_cycles.count, row.round_trip_cycles.min) == (2, 100)


@pytest.mark.parametrize("reached", [0, 1, 2])
def test_a_broadcast_that_reached_some_is_incomplete_and_not_coalesced(reached: int) -> None:
    log = THREE.copy()
    log["ack_tsc"][1] = 0
    handled = [THREE_HANDLED] * reached + [receipts([1040, 3060])] * (3 - reached)
    row = row_of(
        "broadcast", left_alone(storm(log, [NOBODY, *handled]), (1, 2, 3)), targets=(1, 2, 3)
    )
    assert (row.sent, row.delivered, row.coalesced) == (3, 6 + reached, 0)
    assert row.incomplete == 1


def test_a_late_delivery_is_delivered() -> None:
    log = THREE.copy()
    log["ack_tsc"][1] = 0
    row = row_of("unicast-running", left_alone(storm(log, [NOBODY, THREE_HANDLED]), (1,)))
    assert (row.delivered, row.coalesced, row.incomplete) == (3, 0, 1)


def test_nothing_delivered_at_all() -> None:
    log = THREE.copy()
    log["ack_tsc"] = 0
    row = row_of("unicast-running", recorded(storm(log, [NOBODY, NOBODY]), (1,)))
    assert (row.sent, row.delivered, row.coalesced, row.incomplete) == (3, 0, 0, 3)
    assert row.deliver_cycles is None
    assert row.round_trip_cycles is None


def test_a_broadcast_to_three() -> None:
    handled = [receipts([at + extra for at in (1001, 2001, 3001)]) for extra in (0, 10, 20)]
    events = {(Kind.KVM_APIC_IPI, 0): 3, (Kind.KVM_APIC_ACCEPT_IRQ, 0): 9} | {
        (Kind.KVM_EOI, target): 3 for target in (1, 2, 3)
    }
    storms = storm(THREE, [NOBODY, *handled], stats=([{"exits": 0}] * 4, [{"exits": 9}] * 4))
    row = row_of("broadcast", recorded(storms, (1, 2, 3), seen=events), targets=(1, 2, 3))
    assert (row.sent, row.delivered, row.targets, row.coalesced) == (3, 9, 3, 0)
    assert row.deliver_cycles is not None
    assert (row.deliver_cycles.count, row.deliver_cycles.min) == (9, 1)
    assert row.deliver_cycles.max == 21
    assert row.events_per_ipi is not None
    assert row.events_per_ipi["kvm_apic_ipi"] == PerSide(1.0, 0.0)
    assert row.events_per_ipi["kvm_apic_accept_irq"] == PerSide(3.0, 0.0)
    assert row.events_per_ipi["kvm_eoi"] == PerSide(0.0, 1.0)
    assert row.exits is not None
    assert row.exits.sender == {"exits": 3.0}
    assert row.exits.target == {"exits": 3.0}


def test_an_event_is_counted_by_the_repetitions_that_had_it() -> None:
    one = recorded(
        storm(THREE, [NOBODY, THREE_HANDLED]),
        (1,),
        seen={(Kind.KVM_APIC_IPI, 0): 3, (Kind.KVM_EMULATE_INSN, 1): 132},
    )
    assert one.seen is not None
    without = one.seen.copy()
    without[Kind.KVM_EMULATE_INSN] = 0
    others = [replace(one, seen=without, uncounted=frozenset({Kind.KVM_EMULATE_INSN}))] * 5
    row = row_of("unicast-running", one, *others)
    assert row.events_per_ipi == {
        "kvm_apic_ipi": PerSide(1.0, 0.0),
        "kvm_emulate_insn": PerSide(0.0, 44.0),
    }


def test_what_happens_on_a_sender_that_is_a_target_counts_for_the_sender_only() -> None:
    events = {(Kind.KVM_HV_SEND_IPI_EX, 0): 3, (Kind.KVM_EOI, 0): 6, (Kind.KVM_EOI, 1): 3}
    storms = storm(
        THREE, [THREE_HANDLED] * 2, stats=([{"exits": 0}] * 2, [{"exits": 6}, {"exits": 9}])
    )
    row = row_of("broadcast-self-hv-ex", recorded(storms, (0, 1), seen=events), targets=(0, 1))
    assert (row.sent, row.delivered, row.targets, row.coalesced) == (3, 6, 2, 0)
    assert row.events_per_ipi is not None
    assert row.events_per_ipi["kvm_hv_send_ipi_ex"] == PerSide(1.0, 0.0)
    assert row.events_per_ipi["kvm_eoi"] == PerSide(2.0, 1.0)
    assert row.exits is not None
    assert row.exits.sender == {"exits": 2.0}
    assert row.exits.target == {"exits": 3.0}


def test_self_has_no_other_side() -> None:
    stats = ([{"exits": 5}, {"exits": 1}], [{"exits": 11}, {"exits": 100}])
    row = row_of(
        "self", left_alone(storm(THREE, [THREE_HANDLED, NOBODY], stats=stats), (0,)), targets=(0,)
    )
    assert row.delivered == 3
    assert row.exits is not None
    assert row.exits.sender == {"exits": 2.0}
    assert row.exits.target is None
    assert row.absent is not None
    assert row.absent["exits.target"] == "the sender is the target"
    assert row.notes == ()


def test_kvm_statistics_per_ipi() -> None:
    before = [dict(STATS[0]), dict(STATS[0])]
    after = [{"exits": 16, "halt_exits": 4, "l1d_flush": 7}, {"exits": 19, "halt_exits": 7}]
    after[1]["l1d_flush"] = 8
    row = row_of(
        "unicast-halted",
        left_alone(storm(THREE, [NOBODY, THREE_HANDLED], stats=(before, after)), (1,)),
    )
    assert row.kvm_stats == {
        "exits": PerSide(2.0, 3.0),
        "halt_exits": PerSide(0.0, 1.0),
        "l1d_flush": PerSide(0.0, 1 / 3),
    }
    assert row.exits is not None
    assert row.exits.source == KVM_STATS_SOURCE
    assert row.exits.sender == {"exits": 2.0}
    assert row.exits.target == {"exits": 3.0, "halt_exits": 1.0}


def test_without_statistics_and_without_kvm_exit_the_row_says_why() -> None:
    row = row_of("unicast-running", left_alone(PLAIN, (1,)))
    assert row.kvm_stats is None
    assert row.exits is None or row.exits.source is None
    assert row.absent is not None
    assert row.absent["events_per_ipi"] == "nothing was traced"
    assert {path for path in row.absent if path.startswith("exits")}


def test_no_exit_at_all_is_a_measurement() -> None:
    """The point of exitless IPIs: KVM counts, and counts none."""
    idle = {"exits": 5, "halt_exits": 0}
    stats = ([idle, idle], [idle, idle])
    row = row_of(
        "unicast-running", left_alone(storm(THREE, [NOBODY, THREE_HANDLED], stats=stats), (1,))
    )
    assert row.exits is not None
    assert (row.exits.source, row.exits.sender, row.exits.target) == (KVM_STATS_SOURCE, {}, {})


def test_no_exit_is_a_measurement_where_kvm_exit_fires() -> None:
    """A Linux guest has no statistics to fall back on; without an exit there was none."""
    for repetition, source in (
        (recorded(PLAIN, (1,)), KVM_EXIT_SOURCE),
        (
            replace(left_alone(PLAIN, (1,)), seen=np.zeros((len(Kind), 2), np.int64)),
            KVM_EXIT_UNSORTED,
        ),
    ):
        for fires in (True, False):
            measured = Measured(
                BY_NAME["unicast-running"], (1,), 500, 100, 1, (repetition,), kvm_exit_fires=fires
            )
            row = summarise_scenario(measured)
            assert row.exits is not None
            assert row.exits.source == (source if fires else None)
            assert row.exits.target == ({} if fires else None)
            if repetition.watched is not None:
                why = "there was no exit" if fires else "kvm_exit never fired"
                assert (row.absent or {})["exit_times"] == why
            figures = row.repetition_figures[0].exits
            assert (figures is not None) == fires


def test_kvm_exit_events_outrank_the_statistics() -> None:
    stats = ([{"exits": 0}, {"exits": 0}], [{"exits": 99}, {"exits": 99}])
    vmx = int(Isa.VMX)
    first = [(1001, 0, vmx, 32), (1002, 0, vmx, 32), (1003, 1, vmx, 1), (1004, 1, vmx, 12)]
    second = [(1001, 0, vmx, 32), (1003, 1, vmx, 1)]
    one = storm(THREE, [NOBODY, THREE_HANDLED], stats=stats)
    row = row_of(
        "unicast-running",
        recorded(one, (1,), exits=first),
        left_alone(one, (1,)),
        recorded(one, (1,), exits=second),
    )
    assert row.exits is not None
    assert row.exits.source == KVM_EXIT_SOURCE
    assert row.exits.sender == {"exits": 3 / 6, "MSR_WRITE": 3 / 6}
    assert row.exits.target == {"exits": 3 / 6, "EXTERNAL_INTERRUPT": 2 / 6, "HLT": 1 / 6}
    assert list(row.exits.target)[:2] == ["exits", "EXTERNAL_INTERRUPT"]


def test_a_repetition_without_a_common_clock_has_no_part_in_what_exits_cover() -> None:
    """Nothing of its D can be covered: its D is not divided by, either."""
    found = recorded(PLAIN, (1,), exits=[(1001, 0, int(Isa.VMX), 32)])
    assert found.watched is not None
    exits = [
        replace(table, in_deliver_cycles=np.full(len(table.reason), 12))
        for table in found.watched.exits
    ]
    found = replace(found, watched=replace(found.watched, exits=exits))
    alone = row_of("unicast-running", found).exit_times
    both = row_of("unicast-running", found, replace(found, watched=None)).exit_times
    assert alone is not None
    assert alone == both
    assert alone[0].share_of_deliver > 0


def test_the_same_number_means_another_reason_on_amd() -> None:
    svm = int(Isa.SVM)
    exits = [(at, 0, svm, 0x7C) for at in (1001, 2001, 3001)]
    exits += [(1005, 1, svm, 0x60), (2005, 1, svm, 0x78)]
    row = row_of("unicast-running", recorded(PLAIN, (1,), exits=exits))
    assert row.exits is not None
    assert row.exits.sender == {"exits": 1.0, "msr": 1.0}
    assert row.exits.target == {"exits": 2 / 3, "interrupt": 1 / 3, "hlt": 1 / 3}


def test_exits_of_both_kinds_are_told_apart() -> None:
    exits = [(1001, 0, int(Isa.VMX), 0x60), (1002, 0, int(Isa.SVM), 0x60)]
    row = row_of("unicast-running", recorded(PLAIN, (1,), exits=exits))
    assert row.exits is not None
    assert row.exits.sender is not None
    assert len(row.exits.sender) == 3
    assert row.exits.sender["interrupt"] == 1 / 3


def halted(polled: int, slept: int, halts: int, name: str = "unicast-halted") -> tuple[str, ...]:
    names = ("halt_successful_poll", "halt_wakeup", "halt_exits")
    idle = dict.fromkeys(names, 0)
    moved = dict(zip(names, (polled, slept, halts), strict=True))
    stats = ([idle, idle], [idle, moved])
    return row_of(name, left_alone(storm(THREE, [NOBODY, THREE_HANDLED], stats=stats), (1,))).notes


def test_notes_say_where_the_target_was_not_as_asked() -> None:
    assert (
        "polling for the target for 33% of the IPIs; the target's thread slept for 67%"
        in halted(1, 2, 3)[0]
    )
    assert "in HLT for only 33%" in halted(0, 1, 1)[0]
    assert "slept for only 0%" in halted(3, 0, 3, "unicast-blocked")[0]
    assert halted(0, 3, 3, "unicast-blocked") == (
        (
            "the host was polling for the target for 0% of the IPIs; "
            "the target's thread slept for 100%"
        ),
    )
    assert "should have been running" in halted(0, 0, 3, "unicast-running")[0]
    assert halted(0, 0, 0, "unicast-running") == ()


def test_posted_interrupts_outside_guest_mode_are_added_up() -> None:
    delta = InterruptDelta((0, 1), {"PIN": (3, 4), "RES": (10, None)})
    row = row_of("unicast-running", *(recorded(PLAIN, (1,), interrupts=delta),) * 2)
    assert row.late_posts == {"PIN": 14}
    assert row.host_interrupts == {"PIN": {"0": 6, "1": 8}}


def shifted(by: int, mode: Mode) -> Repetition:
    """A repetition whose S took `by` cycles more, and R twice that."""
    log = THREE.copy()
    log["sent_tsc"] += np.uint64(by)
    log["ack_tsc"] += np.uint64(2 * by)
    return reduce_storm(storm(log, [NOBODY, THREE_HANDLED]), [Route(0, (1,))], mode)


def test_observer_costs_compare_neighbours() -> None:
    """Two mirrored blocks; the pairs are those of the same block."""
    repetitions = (
        *(shifted(0, Mode.OFF), shifted(2, Mode.STAGES), shifted(7, Mode.EVIDENCE)),
        *(shifted(104, Mode.EVIDENCE), shifted(103, Mode.STAGES), shifted(101, Mode.OFF)),
    )
    costs = observer_costs(Measured(BY_NAME["unicast-running"], (1,), 0, 0, 0, repetitions))
    assert set(costs) == {"send", "deliver", "round_trip"}
    send = costs["send"]
    assert (send.off_p50, send.stages_p50, send.evidence_p50) == (70, 72, 75)
    assert send.evidence == PairedDifference(5, 3, 7)
    assert send.stages == PairedDifference(2, 2, 2)
    assert costs["round_trip"].evidence == PairedDifference(10, 6, 14)
    assert costs["deliver"].evidence == PairedDifference(0, 0, 0)


def test_observer_costs_need_every_mode() -> None:
    for lacking in MODES:
        repetitions = tuple(shifted(0, mode) for mode in MODES if mode != lacking)
        measured = Measured(BY_NAME["unicast-running"], (1,), 0, 0, 0, repetitions)
        assert observer_costs(measured) == {}


def test_the_last_target_decides_when_all_have_it() -> None:
    """Of each send, the greatest D; a send that missed a target has none."""
    log = THREE.copy()
    log["ack_tsc"][2] = 0
    handled = [receipts([1040, 2020, 3070]), receipts([1030, 2090])]
    row = row_of("broadcast", left_alone(storm(log, [NOBODY, *handled]), (1, 2)), targets=(1, 2))
    last = row.last_deliver_cycles
    assert last is not None
    assert (last.count, last.min, last.max) == (2, 40, 90)
    (figures,) = row.repetition_figures
    assert figures.last_deliver_cycles is not None
    assert (figures.last_deliver_cycles.p50, figures.last_deliver_cycles.p999) == (40, 90)
    assert row.vcpus is not None
    sender, first, second = row.vcpus
    assert (sender.vcpu, first.vcpu, second.vcpu) == (0, 1, 2)
    assert sender.send_cycles is not None
    assert (sender.send_cycles.count, sender.deliver_cycles) == (3, None)
    assert first.deliver_cycles is not None
    assert second.deliver_cycles is not None
    assert (first.deliver_cycles.count, second.deliver_cycles.count) == (3, 2)
    assert (first.deliver_cycles.p50, second.deliver_cycles.max) == (40, 90)
    assert first.send_cycles is None
    alone = row_of("unicast-running", left_alone(PLAIN, (1,)))
    assert (alone.last_deliver_cycles, alone.vcpus) == (None, None)


def test_the_sender_of_a_broadcast_to_all_is_not_counted_as_a_target() -> None:
    handled = [receipts([1001, 2001, 3001]), THREE_HANDLED]
    storms = storm(THREE, handled, stats=([{"exits": 0}] * 2, [{"exits": 6}, {"exits": 9}]))
    row = row_of("broadcast-self", left_alone(storms, (0, 1)), targets=(0, 1))
    assert (row.sent, row.delivered, row.targets) == (3, 6, 2)
    assert row.exits is not None
    assert (row.exits.sender, row.exits.target) == ({"exits": 2.0}, {"exits": 3.0})


def test_a_ring_pools_its_senders() -> None:
    other = sends([(1005, 1010, 1100), (2005, 2010, 2200), (3005, 3010, 3300)])
    other["sender"] = 1
    handled = [receipts([1045, 2045, 3045]), receipts([1020, 3020])]
    storms = storm(
        np.concatenate([THREE, other]), handled, stats=([{"exits": 0}] * 2, [{"exits": 6}] * 2)
    )
    alone = reduce_storm(storms, routes_of(Pattern.RING, (0, 1)), Mode.OFF)
    row = row_of("ring", alone, targets=(0, 1))
    assert (row.sent, row.delivered, row.coalesced, row.targets) == (6, 5, 1, 1)
    assert row.exits is not None
    assert (row.exits.sender, row.exits.target) == ({"exits": 2.0}, None)
    assert row.vcpus is not None
    of_0, of_1 = row.vcpus
    for own, send, deliver in ((of_0, 20, 40), (of_1, 5, 20)):
        assert own.send_cycles is not None
        assert own.deliver_cycles is not None
        assert (own.send_cycles.p50, own.deliver_cycles.p50) == (send, deliver)
    assert row.last_deliver_cycles is None
