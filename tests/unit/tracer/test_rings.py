# SPDX-License-Identifier: Apache-2.0
"""The ring reader against a simulated writer that never waits."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ipitrace.abi.events import RING_EVENT, RING_HEAD
from ipitrace.tracer.rings import RingReader

N_SLOTS = 8


class Writer:
    """Does what record() in bpf/ring.bpf.c does; the n-th event of a ring has ts_ns n."""

    def __init__(self, n_vcpus: int = 1, n_rings: int = 1, n_rows: int = 1) -> None:
        self.slots = np.zeros((n_vcpus, n_rings, N_SLOTS), RING_EVENT)
        self.heads = np.zeros((n_vcpus, n_rows), RING_HEAD)

    def fill_slot(self, vcpu: int = 0, ring: int = 0) -> None:
        written = int(self.heads[vcpu, ring]["written"])
        self.slots[vcpu, ring, written % N_SLOTS] = (written, written * 3, ring, vcpu, 0)

    def write(self, n: int, vcpu: int = 0, ring: int = 0) -> None:
        for _ in range(n):
            self.fill_slot(vcpu, ring)
            self.heads[vcpu, ring]["written"] += 1

    def happen(self, n: int, *, counting_only: bool) -> None:
        if counting_only:
            self.heads[0, 0]["counted"] += n
        else:
            self.write(n)


class LappingReader(RingReader):
    """The writer goes on, `laps` events a copy, while the reader copies."""

    def __init__(self, writer: Writer, laps: list[int], *, in_pieces: bool) -> None:
        super().__init__(writer.slots, writer.heads)
        self.writer, self.laps, self.in_pieces = writer, laps, in_pieces

    def _copy(self, ring: NDArray[np.void], first: int, end: int) -> NDArray[np.void]:
        n = self.laps.pop() if self.laps else 0
        if not self.in_pieces:
            self.writer.write(n)
            return super()._copy(ring, first, end)
        pieces = []
        for at in range(first, end):  # one record at a time, the writer between them
            pieces.append(super()._copy(ring, at, at + 1))
            if n:
                self.writer.write(1)
                n -= 1
        self.writer.write(n)
        self.writer.fill_slot()  # and it is in the middle of the next record
        return np.concatenate(pieces) if pieces else np.empty(0, RING_EVENT)


def drained(reader: RingReader) -> list[int]:
    return [int(ts) for _, _, records in reader.drain() for ts in records["ts_ns"]]


@given(st.lists(st.integers(0, 3 * N_SLOTS), max_size=20))
def test_every_event_is_read_once_or_counted_lost(bursts: list[int]) -> None:
    writer = Writer()
    reader = RingReader(writer.slots, writer.heads)
    read: list[int] = []
    for burst in bursts:
        writer.write(burst)
        new = drained(reader)
        assert len(new) == min(burst, N_SLOTS - 1)
        read += new
    assert read == sorted(set(read))
    assert len(read) + int(reader.lost[0, 0]) == sum(bursts) == int(reader.seen()[0, 0])


@given(st.lists(st.integers(0, N_SLOTS - 1), max_size=20), st.integers(0, 40))
def test_what_there_is_no_room_for_is_counted_lost(bursts: list[int], room: int) -> None:
    writer = Writer(n_vcpus=2)
    reader = RingReader(writer.slots, writer.heads)
    left = room
    for burst in bursts:
        writer.write(burst, vcpu=0)
        writer.write(burst, vcpu=1)
        left -= sum(len(records) for _, _, records in reader.drain(left))
    assert room - left == min(room, 2 * sum(bursts))
    assert room - left + int(reader.lost.sum()) == 2 * sum(bursts)


@given(
    st.lists(st.integers(0, 2 * N_SLOTS), max_size=12),
    st.lists(st.integers(0, 3 * N_SLOTS), max_size=12),
    st.booleans(),
)
def test_a_writer_that_laps_the_reader(bursts: list[int], laps: list[int], in_pieces: bool) -> None:  # noqa: FBT001
    writer = Writer()
    reader = LappingReader(writer, laps, in_pieces=in_pieces)
    read: list[np.void] = []
    for burst in bursts:
        writer.write(burst)
        read += [record for _, _, records in reader.drain() for record in records]
        handed_out = [int(record["ts_ns"]) for record in read]
        assert handed_out == sorted(set(handed_out))
        assert all(int(record["arg"]) == 3 * int(record["ts_ns"]) for record in read)
    laps.clear()
    for _ in range(2):
        read += [record for _, _, records in reader.drain() for record in records]
    assert len(read) + int(reader.lost[0, 0]) == int(writer.heads[0, 0]["written"])


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 2 * N_SLOTS), st.booleans()), max_size=20))
def test_events_that_are_only_counted_are_not_lost(bursts: list[tuple[bool, int, bool]]) -> None:
    """Modes change between bursts; not every burst is followed by a drain."""
    writer = Writer()
    reader = RingReader(writer.slots, writer.heads)
    read: list[int] = []
    for counting_only, n, drain in bursts:
        writer.happen(n, counting_only=counting_only)
        if drain:
            read += drained(reader)
    read += drained(reader)
    recorded = sum(n for counting_only, n, _ in bursts if not counting_only)
    assert len(read) + int(reader.lost[0, 0]) == recorded
    assert read == sorted(set(read))
    assert int(reader.seen()[0, 0]) == sum(n for _, n, _ in bursts)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1), st.integers(1, 5)), max_size=15))
def test_rings_do_not_mix(writes: list[tuple[int, int, int]]) -> None:
    writer = Writer(n_vcpus=3, n_rings=2, n_rows=3)
    reader = RingReader(writer.slots, writer.heads)
    expected = np.zeros((3, 2), int)
    got = np.zeros((3, 2), int)
    for vcpu, ring, n in writes:
        writer.write(n, vcpu, ring)
        expected[vcpu, ring] += n
        for of_vcpu, of_ring, records in reader.drain():
            assert (records["cpu"] == of_vcpu).all()
            assert (records["word"] == of_ring).all()
            got[of_vcpu, of_ring] += len(records)
    assert (got == expected).all()
    assert not reader.lost.any()


def test_rows_without_slots_are_counted() -> None:
    writer = Writer(n_vcpus=2, n_rings=1, n_rows=2)
    reader = RingReader(writer.slots, writer.heads)
    writer.heads[1, 1]["counted"] = 7
    writer.heads[0, 1]["elsewhere"] = 2
    writer.heads[0, 0]["missed"] = 3
    assert reader.drain() == []
    assert reader.seen().tolist() == [[0, 2], [0, 7]]
    assert reader.missed().tolist() == [[3, 0], [0, 0]]


def test_what_was_handed_out_does_not_change_afterwards() -> None:
    writer = Writer()
    reader = RingReader(writer.slots, writer.heads)
    writer.write(3)
    ((_, _, records),) = reader.drain()
    writer.write(N_SLOTS)
    assert records["ts_ns"].tolist() == [0, 1, 2]
