# SPDX-License-Identifier: Apache-2.0
import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import Story, stories, tell

from ipitrace.correlate import breakdown
from ipitrace.correlate.breakdown import break_down, path_shares
from ipitrace.correlate.spans import Spans, correlate
from ipitrace.correlate.stamps import ABSENT
from ipitrace.words.paths import IpiPath
from ipitrace.words.stages import STAGES, Stage


def sequence_of(row: list[int]) -> tuple[Stage, ...]:
    between = [
        s.stage
        for s in STAGES
        if s.critical and s.stage not in {Stage.SEND, Stage.HANDLER} and row[s.stage] != ABSENT
        # What the sender does beside its target, after the handler's begin, is not on the way.
        if s.stage not in {Stage.APICV_ACCEPT, Stage.KICK} or row[s.stage] <= row[Stage.HANDLER]
    ]
    return (Stage.SEND, *sorted(between, key=lambda s: (row[s], s)), Stage.HANDLER)


@given(st.lists(stories(), min_size=1, max_size=4))
def test_sequences_are_counted_and_steps_add_up_to_d(told: list[Story]) -> None:
    parts = [correlate(story.trace) for story in told]
    found = break_down(parts, bound_cycles=0)
    assert found is not None
    rows = [row for part in parts for row in part.tsc.tolist()]
    counts = Counter(map(sequence_of, rows))
    assert found.spans == len(rows)
    assert {s.stages: s.spans for s in found.sequences}.items() <= counts.items()
    frequent = sorted(counts.values(), reverse=True)[:3]
    assert [s.spans for s in found.sequences] == frequent
    dominant = found.sequences[0].stages
    steps = {step.stage: step for step in found.steps}
    assert set(dominant) <= set(steps)
    shares = [steps[stage].share_of_deliver for stage in dominant[1:]]
    assert sum(s for s in shares if s is not None) == pytest.approx(1)
    mine = [row for row in rows if sequence_of(row) == dominant]
    assert steps[Stage.HANDLER].spans == len(mine)
    for row in mine:
        cycles = [row[b] - row[a] for a, b in itertools.pairwise(dominant)]
        assert sum(cycles) == row[Stage.HANDLER] - row[Stage.SEND]
    for stage, step in steps.items():
        present = sorted(row[stage] - row[Stage.SEND] for row in mine if row[stage] != ABSENT)
        assert step.spans == len(present)
        assert step.since_send_cycles == present[(len(present) - 1) // 2]
        assert (step.step_cycles is None) == (stage not in dominant[1:])


def test_a_sequence_of_all_stages_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """More of them than one integer holds, and sequences that differ in the last stages alone."""
    between = [s for s in Stage if s not in {Stage.SEND, Stage.HANDLER}]
    monkeypatch.setattr(breakdown, "_BETWEEN", np.array(between))
    orders = [between, [*between[:-2], between[-1], between[-2]], between[:-1], between[::-1]]
    spans = correlate(tell("vmx", 10, 1).trace)
    wanted = [0, 1, 1, 2, 2, 2, 3, 3, 3, 3]
    tsc = np.full_like(spans.tsc, ABSENT)
    tsc[:, Stage.SEND], tsc[:, Stage.HANDLER] = 1000, 2000
    for row, which in enumerate(wanted):
        for at, stage in enumerate(orders[which]):
            tsc[row, stage] = 1001 + at
    found = break_down([replace(spans, tsc=tsc)], bound_cycles=0)
    assert found is not None
    assert [(list(s.stages[1:-1]), s.spans) for s in found.sequences] == [
        (orders[3], 4),
        (orders[2], 3),
        (orders[1], 2),
    ]


def test_only_steps_between_the_two_clocks_can_be_unresolved() -> None:
    spans = correlate(tell("vmx", 9, 1).trace)
    found = break_down([spans], bound_cycles=10**9)
    assert found is not None
    unresolved = {step.stage for step in found.steps if not step.resolved}
    assert unresolved == {Stage.SENDER_EXIT, Stage.HANDLER}
    exitless = break_down([correlate(tell("exitless", 9, 1).trace)], bound_cycles=10**9)
    assert exitless is not None
    assert all(step.resolved for step in exitless.steps)


def _without(spans: Spans, rows: list[int]) -> Spans:
    columns = {**vars(spans), "suspect": spans.suspect.copy()}
    columns["suspect"][rows] = True
    return Spans(**columns)


def test_suspect_and_undelivered_spans_are_left_out() -> None:
    spans = correlate(tell("vmx", 5, 1, lost=frozenset({1})).trace)
    found = break_down([_without(spans, [0])], bound_cycles=0)
    assert found is not None
    assert found.spans == 3
    assert break_down([_without(spans, [0, 2, 3, 4])], bound_cycles=0) is None
    assert break_down([], bound_cycles=0) is None


def test_paths_are_shared_out() -> None:
    parts = [correlate(tell(n, k, 1).trace) for n, k in (("vmx", 6), ("exitless", 3), ("avic", 1))]
    assert path_shares(parts) == {
        IpiPath.MSR_EXIT: 0.6,
        IpiPath.EXITLESS: 0.3,
        IpiPath.AVIC_NOT_RUNNING: 0.1,
    }
    assert path_shares([]) == {}
    empty = correlate(tell("vmx", 0, 1).trace)
    assert path_shares([empty]) == {}
    assert empty.tsc.dtype == np.int64
