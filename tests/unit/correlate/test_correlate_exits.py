# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import numpy as np
from host_models import Happening
from hypothesis import given
from hypothesis import strategies as st
from made_up import SEEDS, Story, stories, tell

from ipitrace.correlate.exits import ExitTable, exit_tables
from ipitrace.correlate.spans import StormTrace, correlate
from ipitrace.correlate.stamps import ABSENT
from ipitrace.recording.row import ExitTime
from ipitrace.summary.exit_times import exit_times
from ipitrace.summary.storms import Cycles, HostSide, Measured, Repetition
from ipitrace.words.events import Kind
from ipitrace.words.exit_reasons import Isa
from ipitrace.words.scenarios import SCENARIOS, Mode
from ipitrace.words.stages import Stage

NOTHING = np.empty(0, np.int64)


def tables_of(trace: StormTrace) -> list[ExitTable]:
    return exit_tables(trace, correlate(trace))


def rows_of(trace: StormTrace) -> tuple[ExitTime, ...]:
    """What a run prints of the storm's exits."""
    spans = correlate(trace)
    handled = spans.stage(Stage.HANDLER) != ABSENT
    deliver = (spans.stage(Stage.HANDLER) - spans.stage(Stage.SEND))[handled]
    n = len(trace.receipts)
    watched = HostSide(spans, exit_tables(trace, spans), None)
    repetition = Repetition(
        mode=Mode.FULL,
        cycles=Cycles(NOTHING, deliver, NOTHING, 0, 0),
        n_vcpus=n,
        sent=len(trace.sends),
        handled=tuple(map(len, trace.receipts)),
        timed_out=0,
        stats=None,
        watched=watched,
    )
    measured = Measured(SCENARIOS[0], tuple(trace.targets), 0, 0, 0, (repetition,))
    return exit_times(measured, None)


@given(story=stories(), seed=SEEDS, noise=st.booleans())
def test_exits_cover_each_side_of_d_at_most_once(*, story: Story, seed: int, noise: bool) -> None:
    rng = np.random.default_rng(seed)
    happenings = list(story.happenings)
    if noise:  # exits and entries anywhere, on every vCPU
        low, high = int(story.tsc[0, Stage.SEND]) - 9999, int(story.over[-1]) + 9999
        for tsc in rng.integers(low, high, 40).tolist():
            kind = Kind.KVM_EXIT if rng.random() < 0.5 else Kind.KVM_ENTRY
            happenings.append(Happening(tsc, int(rng.integers(0, 4)), kind, -1, Isa.VMX, 1))
    trace = story.with_events(happenings)
    rows = rows_of(trace)
    for side in ("sender", "target"):
        shares = [row.share_of_deliver for row in rows if row.side == side]
        assert all(share >= 0 for share in shares)
        assert sum(shares) <= 1 + 1e-9
    for table in tables_of(trace):
        assert (table.in_deliver_cycles >= 0).all()
        assert (table.in_deliver_cycles[table.cycles == ABSENT] == 0).all()
        own = sorted(h.tsc for h in happenings if (h.vcpu, h.kind) == (table.vcpu, Kind.KVM_EXIT))
        assert len(table.cycles) == len(own)


@given(stories())
def test_overlap_is_what_counting_cycle_by_cycle_finds(story: Story) -> None:
    tables = tables_of(story.trace)
    targets = story.trace.targets
    for table in tables:
        exits = sorted(
            h.tsc for h in story.happenings if (h.vcpu, h.kind) == (table.vcpu, Kind.KVM_EXIT)
        )
        for start, cycles, covered in zip(
            exits, table.cycles.tolist(), table.in_deliver_cycles.tolist(), strict=True
        ):
            end = start if cycles == ABSENT else start + cycles
            rows = story.tsc.reshape(-1, len(targets), len(Stage))
            mine = range(len(targets)) if table.vcpu == 0 else [targets.index(table.vcpu)]
            expected = sum(
                max(0, min(end, rows[i, k, Stage.HANDLER]) - max(start, rows[i, k, Stage.SEND]))
                for i in range(len(rows))
                for k in mine
            )
            assert covered == expected


def test_an_exit_over_several_windows_counts_in_each() -> None:
    story = tell("exitless", 4, 1)
    send, handler = story.tsc[:, Stage.SEND], story.tsc[:, Stage.HANDLER]
    half = int(handler[1] - send[1]) // 2
    long = [
        Happening(int(send[1]) + half, 1, Kind.KVM_EXIT, -1, Isa.VMX, 1),
        Happening(int(handler[3]) + 7, 1, Kind.KVM_ENTRY, -1),
    ]
    tables = tables_of(story.with_events(long))
    target = next(t for t in tables if t.vcpu == 1)
    d = handler - send
    assert target.in_deliver_cycles.tolist() == [d[1] - half + d[2] + d[3]]


def unpaired(trace: StormTrace) -> dict[str, int]:
    return {row.reason: row.unpaired for row in rows_of(trace) if row.side == "sender"}


def test_the_last_exit_before_an_entry_is_the_one_it_ends() -> None:
    story = tell("vmx-unpaired", 5, 3)
    sender = next(t for t in tables_of(story.trace) if t.vcpu == 0)
    assert unpaired(story.trace) == {"MSR_WRITE": 5, "EXTERNAL_INTERRUPT": 0}
    assert sender.reason[sender.cycles == ABSENT].tolist() == [32] * 5
    assert sender.reason[sender.cycles != ABSENT].tolist() == [1] * 5
    assert not any(unpaired(tell("vmx", 5, 3).trace).values())


def test_no_exits_no_sends() -> None:
    story = tell("vmx", 2, 3)
    tables = tables_of(story.with_events([]))
    assert [len(t.cycles) for t in tables] == [0, 0]
    assert rows_of(story.with_events([])) == ()
    unsent = replace(story.trace, sends=story.trace.sends[:0])
    tables = tables_of(unsent)
    assert {row.share_of_deliver for row in rows_of(unsent)} == {0}
    assert not any(t.in_deliver_cycles.any() for t in tables)
    assert len(tables[0].cycles) == 2
