# SPDX-License-Identifier: Apache-2.0
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import SEEDS, Story, same, stories, tell

from ipitrace.correlate.spans import correlate, joined
from ipitrace.correlate.stream import Chunk, correlate_stream


def chunks(story: Story, cuts: list[int]) -> Iterator[Chunk]:
    for start, end in zip([0, *cuts], [*cuts, len(story.happenings)], strict=True):
        yield story.trace.events[start:end], story.trace.event_tsc[start:end]


@given(stories(), st.data(), st.integers(1, 9))
def test_any_chunks_and_blocks_give_the_whole(
    story: Story, data: st.DataObject, block_sends: int
) -> None:
    n = len(story.happenings)
    cuts = sorted(data.draw(st.lists(st.integers(0, n), max_size=10)))
    parts = list(correlate_stream(story.trace, chunks(story, cuts), block_sends))
    whole = correlate(story.trace)
    assert len(parts) == -(-len(story.trace.sends) // block_sends)
    assert same(joined(parts), whole)
    assert joined(parts).unmatched_events == whole.unmatched_events


@given(stories(min_size=2), SEEDS, st.integers(1, 4))
def test_so_they_do_with_events_lost_and_strange_ones_between(
    story: Story, seed: int, block_sends: int
) -> None:
    rng = np.random.default_rng(seed)
    low, high = story.trace.event_tsc[[0, -1]] if len(story.happenings) else (0, 1)
    moved = [
        replace(h, tsc=int(rng.integers(low, high + 1))) if rng.random() < 0.3 else h
        for h in story.happenings
    ]
    kept = sorted((h for h in moved if rng.random() < 0.8), key=lambda h: h.tsc)
    trace = story.with_events(kept, complete=bool(rng.random() < 0.5))
    parts = list(correlate_stream(trace, [(trace.events, trace.event_tsc)], block_sends))
    whole = correlate(trace)
    assert same(joined(parts), whole)
    assert joined(parts).unmatched_events == whole.unmatched_events


def test_a_stream_out_of_order_is_refused() -> None:
    story = tell("vmx", 4, 1)
    events, tsc = story.trace.events, story.trace.event_tsc
    for wrong in ([(events[9:], tsc[9:]), (events[:9], tsc[:9])], [(events[::-1], tsc[::-1])]):
        with pytest.raises(ValueError, match="in order of time"):
            list(correlate_stream(story.trace, wrong, 2))


def test_no_more_is_read_than_the_block_needs() -> None:
    story = tell("vmx", 10, 1)
    read = []

    def watched() -> Iterator[Chunk]:
        for i in range(len(story.happenings)):
            read.append(i)
            yield story.trace.events[i : i + 1], story.trace.event_tsc[i : i + 1]

    stream = correlate_stream(story.trace, watched(), 1)
    next(stream)
    first = sum(h.ipi == 0 for h in story.happenings)
    assert len(read) == first + 1


def test_a_storm_of_no_sends_still_tells_its_events() -> None:
    story = tell("vmx", 3, 1)
    trace = replace(story.trace, sends=story.trace.sends[:0])
    (spans,) = correlate_stream(trace, [(trace.events, trace.event_tsc)])
    assert spans.unmatched_events == correlate(trace).unmatched_events
    assert spans.unmatched_events["kvm_apic_ipi"] == 3
