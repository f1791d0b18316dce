# SPDX-License-Identifier: Apache-2.0
"""A storm's events by vCPU and kind, in order of time, and binary searches among them."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ipitrace.abi.events import HOST_EVENT
from ipitrace.correlate.stamps import ABSENT, NEVER, Stamps, absent_last
from ipitrace.words.events import NR_KINDS, Kind

Keep = Callable[["Events"], NDArray[np.bool_]]

_RADIX_SORTED = np.iinfo(np.uint16).max  # NumPy sorts only up to 16-bit integers in linear time


class Events:
    """One vCPU's events of one kind in order of time; events of equal time ordered by words."""

    def __init__(self, records: NDArray[np.void], tsc: Stamps, index: NDArray[np.int64]) -> None:
        self._records = records
        self._index = index
        self.tsc = tsc[index]
        if np.any(self.tsc[1:] <= self.tsc[:-1]):
            words = [self[name] for name in ("cpu", "arg", "word", "detail")]
            order = np.lexsort([*words, self.tsc])
            self._index = index[order]
            self.tsc = self.tsc[order]

    def __len__(self) -> int:
        return len(self.tsc)

    def __getitem__(self, field: str) -> NDArray[np.integer[Any]]:
        """One field of HOST_EVENT."""
        column: NDArray[np.integer[Any]] = self._records[field][self._index]
        return column


_NONE = Events(np.empty(0, HOST_EVENT), np.empty(0, np.int64), np.empty(0, np.int64))


class EventIndex:
    """All events of a storm."""

    def __init__(self, records: NDArray[np.void], tsc: Stamps) -> None:
        key = records["vcpu"] * np.uint32(NR_KINDS) + records["kind"]
        if not len(key) or key.max() <= _RADIX_SORTED:
            key = key.astype(np.uint16)
        order = np.argsort(key, kind="stable")
        ends = np.flatnonzero(np.diff(key[order])) + 1
        starts = [0, *ends.tolist()] if len(key) else []
        self._index: Mapping[int, NDArray[np.int64]] = {
            int(key[order[start]]): order[start:end]
            for start, end in zip(starts, [*starts[1:], len(key)], strict=False)
        }
        self._records = records
        self._tsc = tsc
        self._made: dict[int, Events] = {}

    def of(self, vcpu: int, kind: Kind) -> Events:
        """One vCPU's events of one kind."""
        key = vcpu * NR_KINDS + kind
        if key not in self._index:
            return _NONE
        if key not in self._made:
            self._made[key] = Events(self._records, self._tsc, self._index[key])
        return self._made[key]

    def stamps(self, vcpu: int, kinds: Iterable[Kind], keep: Keep | None = None) -> Stamps:
        """Stamps of one vCPU's events of several kinds, filtered by `keep`, ascending."""
        groups = [group for kind in kinds if len(group := self.of(vcpu, kind))]
        stamps = [group.tsc if keep is None else group.tsc[keep(group)] for group in groups]
        if not stamps:
            return np.empty(0, np.int64)
        return stamps[0] if len(stamps) == 1 else np.sort(np.concatenate(stamps), kind="stable")


def first_in(tsc: Stamps, low: Stamps, high: Stamps) -> Stamps:
    """For each i the first stamp in [low[i], high[i]), or ABSENT."""
    if not len(tsc):
        return np.full(len(low), ABSENT)
    at = np.searchsorted(tsc, low)
    found = tsc.take(at, mode="clip")
    return np.where((found < high) & (at < len(tsc)), found, ABSENT)


def last_in(tsc: Stamps, low: Stamps, high: Stamps) -> Stamps:
    """For each i the last stamp in [low[i], high[i]), or ABSENT."""
    if not len(tsc):
        return np.full(len(low), ABSENT)
    at = np.searchsorted(tsc, high) - 1
    found = tsc.take(at, mode="clip")
    return np.where((found >= low) & (at >= 0), found, ABSENT)


def count_in(tsc: Stamps, low: Stamps, until: Stamps) -> NDArray[np.int64]:
    """For each i the number of stamps in [low[i], until[i]), where until[i] is low[i + 1]."""
    if not len(tsc):
        return np.zeros(len(low), np.int64)
    edges = np.searchsorted(tsc, np.append(low, until[-1:]))
    return np.asarray(np.maximum(np.diff(edges), 0), np.int64)


def either(first: Stamps, *others: Stamps) -> Stamps:
    """The first argument that is not ABSENT."""
    for other in others:
        first = np.where(first == ABSENT, other, first)
    return first


def earliest(first: Stamps, *others: Stamps) -> Stamps:
    """The least argument that is not ABSENT; ABSENT if all are."""
    least = absent_last(first)
    for other in others:
        least = np.minimum(least, absent_last(other))
    return np.where(least == NEVER, ABSENT, least)
