# SPDX-License-Identifier: Apache-2.0
"""Spans of a storm whose events do not fit in memory, one block of sends at a time."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ipitrace.abi.events import HOST_EVENT
from ipitrace.correlate.spans import Spans, correlate_part
from ipitrace.correlate.trace import GuestSide, StormTrace

Chunk = tuple[NDArray[np.void], NDArray[np.int64]]
BLOCK_SENDS = 1 << 16


def correlate_stream(
    trace: StormTrace, chunks: Iterable[Chunk], block_sends: int = BLOCK_SENDS
) -> Iterator[Spans]:
    """Yield the Spans of blocks of `block_sends` sends; together they equal those of correlate().

    No search leaves an IPI's window. A block needs only the events between its first window
    and the next block's. Memory holds the guest's logs, the events and spans of one block, and
    one chunk. unmatched_events of all blocks add up to those of the whole.

    Args:
        trace: the storm; its own events are ignored.
        chunks: (events, their stamps), as in StormTrace; together in order of time.
        block_sends: the number of sends in a block.

    Raises:
        ValueError: the chunks are not in order of time.
    """
    guest = GuestSide.of(trace)
    buffer = _Buffer(chunks)
    n = len(guest.send)
    for first in range(0, max(n, 1), block_sends):
        last = min(first + block_sends, n)
        events, tsc = buffer.before(int(guest.low[last])) if last < n else buffer.rest()
        part = replace(trace, events=events, event_tsc=tsc)
        yield correlate_part(part, guest.part(slice(first, last)))


class _Buffer:
    """Events that were read and not returned yet."""

    def __init__(self, chunks: Iterable[Chunk]) -> None:
        self._chunks = iter(chunks)
        self._waiting: list[Chunk] = []
        self._latest: int | None = None

    def before(self, tsc: int) -> Chunk:
        """All events before `tsc` that have not been returned yet."""
        while self._latest is None or self._latest < tsc:
            if not self._read():
                break
        ready, self._waiting = self._waiting, []
        if ready:
            events, stamps = ready[-1]
            cut = int(np.searchsorted(stamps, tsc))
            ready[-1] = events[:cut], stamps[:cut]
            self._waiting = [(events[cut:], stamps[cut:])]
        return _joined(ready)

    def rest(self) -> Chunk:
        """All remaining events."""
        while self._read():
            pass
        ready, self._waiting = self._waiting, []
        return _joined(ready)

    def _read(self) -> bool:
        for events, stamps in self._chunks:
            if not len(stamps):
                continue
            if (self._latest is not None and stamps[0] < self._latest) or np.any(
                stamps[1:] < stamps[:-1]
            ):
                raise ValueError("events of a stream must be in order of time")
            self._latest = int(stamps[-1])
            self._waiting.append((events, stamps))
            return True
        return False


def _joined(parts: list[Chunk]) -> Chunk:
    if len(parts) == 1:
        return parts[0]
    if not parts:
        return np.empty(0, HOST_EVENT), np.empty(0, np.int64)
    events, stamps = zip(*parts, strict=True)
    return np.concatenate(events), np.concatenate(stamps)
