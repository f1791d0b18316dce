# SPDX-License-Identifier: Apache-2.0
"""Taking the programs' weight out of stages, on IPIs whose true stages are known."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from strategies import receipts, sends, storm

from ipitrace.abi.events import HOST_EVENT
from ipitrace.correlate.exits import exit_tables
from ipitrace.correlate.spans import StormTrace, correlate
from ipitrace.correlate.weights import TwinDistance, twin_distances
from ipitrace.recording.row import EventWeights
from ipitrace.summary.rows import summarise_scenario
from ipitrace.summary.single import ipi_without_weight
from ipitrace.summary.storms import HostSide, Measured, Repetition, reduce_storm
from ipitrace.summary.weights import Weights
from ipitrace.words.events import Kind
from ipitrace.words.scenarios import Mode, Route, select_scenarios
from ipitrace.words.stages import Stage

(RUNNING,) = select_scenarios(["unicast-running"])
VECTOR = 0xF0
COST, REST = 100, 40  # of the program, and of the tracepoint around it
BEFORE = 0.72 * (COST + REST)
PATH = ((Kind.KVM_EXIT, 200), (Kind.KVM_APIC_IPI, 300), (Kind.KVM_APIC_ACCEPT_IRQ, 420))
AFTER = ((Kind.KVM_ENTRY, 700),)
HANDLER, SENT, ACK = 520, 900, 950  # cycles since the send while nothing is attached
N, PACE = 30, 10_000


def stormy(mode: Mode, *, weight: float, longer: Mapping[Kind, int] | None = None) -> Repetition:
    """IPIs in one mode; each host event delays what follows by `weight`."""
    longer = longer or {}
    events, tsc, stamps, handled = [], [], [], []
    for i in range(N):
        base, late = 1_000_000 + i * PACE, 0.0
        for before, (kind, since) in enumerate((*PATH, *AFTER)):
            late += longer.get(kind, 0)
            at = since + late + before * weight
            events.append(kind)
            tsc.append(round(base + at + (BEFORE / (COST + REST)) * weight))
        on_path = sum(longer.get(kind, 0) for kind, _ in PATH)
        handled.append(round(base + HANDLER + on_path + len(PATH) * weight))
        stamps.append(
            (base, round(base + SENT + late + 4 * weight), round(base + ACK + late + 4 * weight))
        )
    one = storm(sends(stamps), [receipts([]), receipts(handled)])
    records = np.zeros(len(events), HOST_EVENT)
    for record, kind in zip(records, events, strict=True):
        record["kind"] = kind
        if kind == Kind.KVM_APIC_IPI:
            record["word"] = VECTOR
        if kind == Kind.KVM_APIC_ACCEPT_IRQ:
            record["detail"], record["word"] = VECTOR, 1
    trace = StormTrace(
        sends=one.sends,
        receipts=one.receipts,
        sender=0,
        targets=(1,),
        vector=VECTOR,
        events=records,
        event_tsc=np.array(tsc),
        bound_cycles=1,
        cpus=None,
        complete=True,
        exits_fire=True,
        stages_only=mode == Mode.STAGES,
    )
    spans = correlate(trace)
    twins = {kind: TwinDistance(N, float(COST)) for kind, _ in (*PATH, *AFTER)}
    return reduce_storm(
        one,
        [Route(0, (1,))],
        mode,
        None if mode == Mode.OFF else HostSide(spans, exit_tables(trace, spans), None),
        twins=twins if mode == Mode.EVIDENCE else {},
    )


def measured(*, longer: Mapping[Kind, int] | None = None, off: Sequence[float] = (0,)) -> Measured:
    weight = COST + REST
    blocks = [
        (
            replace(stormy(Mode.OFF, weight=off[i % len(off)], longer=longer)),
            stormy(Mode.STAGES, weight=weight, longer=longer),
            stormy(Mode.EVIDENCE, weight=3 * weight, longer=longer),
        )
        for i in range(3)
    ]
    return Measured(RUNNING, (1,), 0, 0, 1, tuple(r for block in blocks for r in block))


def steps(one: Measured) -> dict[str, int]:
    row = summarise_scenario(one, 1.0)
    assert row.stages is not None
    assert row.stages.corrected is not None
    return {s.stage: s.step_cycles for s in row.stages.corrected.steps if s.step_cycles is not None}


TRUE = {"sender_exit": 200, "ipi": 100, "accept": 120, "handler": 100}


def test_stages_are_as_if_nothing_had_been_attached() -> None:
    assert steps(measured()) == pytest.approx(TRUE, abs=2)


def test_they_add_up_to_the_untraced_d() -> None:
    row = summarise_scenario(measured(), 1.0)
    assert row.stages is not None
    corrected = row.stages.corrected
    assert corrected is not None
    assert corrected.deliver_cycles == HANDLER
    assert corrected.sum_cycles == pytest.approx(HANDLER, abs=2)
    assert corrected.holds
    assert corrected.weights is not None
    assert corrected.weights.rest_cycles == pytest.approx(REST, abs=1)
    raw = {s.stage: s.step_cycles for s in row.stages.steps}
    assert raw["ipi"] == pytest.approx(100 + COST + REST, abs=2)
    assert row.deliver_cycles is not None
    assert row.deliver_cycles.p50 == HANDLER


@pytest.mark.parametrize(
    ("kind", "stage"),
    [(Kind.KVM_EXIT, "sender_exit"), (Kind.KVM_APIC_ACCEPT_IRQ, "accept")],
)
def test_what_takes_longer_is_found_in_its_stage_alone(kind: Kind, stage: str) -> None:
    found = steps(measured(longer={kind: 250}))
    assert found == pytest.approx({**TRUE, stage: TRUE[stage] + 250}, abs=2)


def test_where_they_do_not_add_up_it_is_told() -> None:
    """The untraced IPIs took another way: D is known, and its stages are not."""
    one = measured()
    slow = [
        replace(r, cycles=replace(r.cycles, deliver=r.cycles.deliver + 100))
        if r.mode == Mode.OFF
        else r
        for r in one.repetitions
    ]
    row = summarise_scenario(replace(one, repetitions=tuple(slow)), 1.0)
    assert row.stages is not None
    corrected = row.stages.corrected
    assert corrected is not None
    assert not corrected.holds
    assert corrected.unexplained == pytest.approx(HANDLER / (HANDLER + 100) - 1, abs=0.01)


def test_without_twins_or_a_clock_nothing_is_corrected() -> None:
    one = measured()
    bare = tuple(replace(r, twins={}) for r in one.repetitions)
    for row in (
        summarise_scenario(one, None),
        summarise_scenario(replace(one, repetitions=bare), 1.0),
    ):
        assert row.stages is not None
        assert row.stages.corrected is None


def test_one_ipi_of_a_recording_loses_the_same_weight() -> None:
    repetition = stormy(Mode.STAGES, weight=COST + REST)
    assert repetition.watched is not None
    spans = repetition.watched.spans
    span = {f"{s.name.lower()}_tsc": int(spans.tsc[0, s]) for s in Stage if spans.tsc[0, s] > 0}
    span |= {"sender": 0, "target": 1}
    stages = (Stage.SENDER_EXIT, Stage.IPI, Stage.ACCEPT, Stage.SENDER_ENTRY)
    events = [
        {
            "vcpu": 0,
            "word": 0,
            "detail": None,
            "kind": kind.name.lower(),
            "tsc": span[f"{stage.name.lower()}_tsc"],
        }
        for (kind, _), stage in zip((*PATH, *AFTER), stages, strict=True)
    ]
    weights = EventWeights({"kvm_entry": float(COST), "of_a_newer_version": 1.0}, float(REST))
    found = ipi_without_weight(span, events, weights)
    since = {stage: tsc - span["send_tsc"] for stage, tsc in found.items()}
    assert since["handler"] == pytest.approx(HANDLER, abs=2)
    assert since["accept"] == pytest.approx(420, abs=2)
    assert since["sent"] == pytest.approx(SENT, abs=2)


def test_weights_are_read_back_as_they_were() -> None:
    weights = Weights({Kind.KVM_EXIT: 12.5, Kind.SCHED_SWITCH: 90.0}, -3.0)
    assert Weights.of(weights.result()) == weights


def host_events(kind: Kind, vcpu: int, stamps: Sequence[int]) -> np.ndarray:
    made = np.zeros(len(stamps), HOST_EVENT)
    made["kind"], made["vcpu"], made["ts_ns"] = kind, vcpu, stamps
    return made


def test_twins_are_paired_by_event() -> None:
    first = host_events(Kind.KVM_ENTRY, 0, [100, 1000, 2000])
    second = host_events(Kind.KVM_ENTRY, 0, [150, 2060])  # one event was stamped once only
    other = host_events(Kind.KVM_ENTRY, 1, [1010])
    found = twin_distances(first, np.concatenate([second, other]))
    assert set(found) == {Kind.KVM_ENTRY}
    assert found[Kind.KVM_ENTRY].pairs == 2
    assert 50 <= found[Kind.KVM_ENTRY].ns <= 60
    assert twin_distances(first, other) == {}
    assert twin_distances(first[:0], second) == {}


def test_exits_are_as_long_as_if_nothing_had_been_attached() -> None:
    found = summarise_scenario(measured(), 1.0).exit_times
    assert found is not None
    (one,) = found
    assert (one.side, one.exits, one.unpaired) == ("sender", 3 * N, 0)
    assert one.p50_cycles == pytest.approx(700 - 200, abs=2)
    assert one.share_of_deliver == pytest.approx((HANDLER - 200) / HANDLER, abs=0.01)
    assert one.without_weight


def test_a_longer_exit_is_found_as_such() -> None:
    found = summarise_scenario(measured(longer={Kind.KVM_APIC_ACCEPT_IRQ: 250}), 1.0).exit_times
    assert found is not None
    assert found[0].p50_cycles == pytest.approx(700 - 200 + 250, abs=2)


def test_exits_without_known_weights_say_so() -> None:
    found = summarise_scenario(measured(), None).exit_times
    assert found is not None
    assert found[0].without_weight is None
    assert found[0].p50_cycles == pytest.approx(500 + 3 * (COST + REST), abs=2)
