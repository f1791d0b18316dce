# SPDX-License-Identifier: Apache-2.0
"""Read the rings that the BPF programs write, in place and without a system call."""

import numpy as np
from numpy.typing import NDArray

from ipitrace.abi.events import RING_EVENT


class RingReader:
    """The only reader of rings while their writers write.

    A writer fills the slot at index `written` and then increments `written`. It never waits. Of
    the records up to `written`, the last n_slots exist, except the one that the writer may be
    replacing; the others are lost. Events that are only counted increase `counted` and have no
    ring.
    """

    def __init__(self, slots: NDArray[np.void], heads: NDArray[np.void]) -> None:
        """`slots`: RING_EVENT (n_vcpus, n_rings, n_slots), `heads`: RING_HEAD (n_vcpus, n_rows).

        Rows from n_rings on have no slots and are only counted. Reading starts at each ring's
        first event.
        """
        self._slots = slots
        self._heads = heads
        n_vcpus, n_rings, self.n_slots = slots.shape
        self._ring_heads = heads[:, :n_rings]["written"]
        self._read: NDArray[np.uint64] = np.zeros((n_vcpus, n_rings), np.uint64)
        self.lost: NDArray[np.uint64] = np.zeros((n_vcpus, n_rings), np.uint64)
        self.fullest = 0  # the most records that a ring had when drain() was last called

    def seen(self) -> NDArray[np.uint64]:
        """Number of events, recorded or only counted, (n_vcpus, n_rows)."""
        heads = self._heads
        in_threads: NDArray[np.uint64] = heads["written"] + heads["counted"] - heads["others"]
        seen: NDArray[np.uint64] = in_threads + heads["elsewhere"]
        return seen

    def missed(self) -> NDArray[np.uint64]:
        """Events dropped because they occurred while their ring was written, (n_vcpus, n_rows)."""
        return np.array(self._heads["missed"])

    def drain(self, most: int | None = None) -> list[tuple[int, int, NDArray[np.void]]]:
        """Copy the new records: (vcpu, ring, records in order) of each ring that has any.

        Afterwards, for every ring: records written = records returned + lost. At most `most`
        records are returned; the others are lost.
        """
        heads = np.array(self._ring_heads)
        self.fullest = int((heads - self._read).max(initial=0))
        news: list[tuple[int, int, NDArray[np.void]]] = []
        for vcpu, ring in np.argwhere(heads != self._read).tolist():
            start, end = int(self._read[vcpu, ring]), int(heads[vcpu, ring])
            first = max(start, end - self.n_slots)
            records = self._copy(self._slots[vcpu, ring], first, end)
            # The writer continued during the copy: it has replaced, or is replacing, every record
            # that is more than n_slots - 1 behind its present position.
            valid_from = int(self._ring_heads[vcpu, ring]) + 1 - self.n_slots
            if valid_from > first:
                records = records[valid_from - first :]
            if most is not None:
                records = records[: max(most, 0)]
                most -= len(records)
            self.lost[vcpu, ring] += np.uint64(end - start - len(records))
            self._read[vcpu, ring] = end
            if len(records):
                news.append((vcpu, ring, records))
        return news

    def _copy(self, ring: NDArray[np.void], first: int, end: int) -> NDArray[np.void]:
        """A copy of the records from `first` up to `end`, at most n_slots of them."""
        if first == end:
            return np.empty(0, RING_EVENT)
        left, right = first % self.n_slots, end % self.n_slots
        if left < right:
            return ring[left:right].copy()
        return np.concatenate((ring[left:], ring[:right]))
