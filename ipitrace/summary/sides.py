# SPDX-License-Identifier: Apache-2.0
"""Converts counts per vCPU to counts per IPI, separately for sender and targets."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ipitrace.recording.row import PerSide
from ipitrace.summary.storms import Measured, Repetition
from ipitrace.words.events import Kind


@dataclass(frozen=True)
class Sides:
    """Senders and targets, and by what their counts are divided.

    Attributes:
        senders: the vCPUs that send.
        others: the targets that do not send.
        sent: sends of all senders.
        delivered: deliveries to `others`, or 1 if there were none.
    """

    senders: frozenset[int]
    others: frozenset[int]
    sent: int
    delivered: int

    @classmethod
    def of(cls, measured: Measured, storms: Sequence[Repetition]) -> Self:
        """The sides of a scenario in these repetitions."""
        senders = frozenset(route.sender for route in measured.routes)
        others = frozenset(measured.targets) - senders
        delivered = sum(storm.handled[t] for storm in storms for t in others)
        return cls(senders, others, sum(storm.sent for storm in storms), max(delivered, 1))

    def per_ipi(self, per_vcpu: Sequence[int] | NDArray[np.int64]) -> PerSide:
        """Events per send on the senders, and per delivery on the other targets."""
        on_senders = sum(int(per_vcpu[vcpu]) for vcpu in self.senders)
        on_others = sum(int(per_vcpu[vcpu]) for vcpu in self.others)
        return PerSide(on_senders / self.sent, on_others / self.delivered)


def kvm_stats(storms: Sequence[Repetition], sides: Sides) -> dict[str, PerSide] | None:
    """KVM's counters per IPI, including `exits`; counters that did not change are excluded."""
    totals: dict[str, list[int]] = {}
    for storm in storms:
        if storm.stats is None:
            return None
        for vcpu, moved in enumerate(storm.stats):
            for name, value in moved.items():
                totals.setdefault(name, [0] * storm.n_vcpus)[vcpu] += value
    per_ipi = {name: sides.per_ipi(counts) for name, counts in totals.items() if any(counts)}
    return dict(sorted(per_ipi.items()))


def events_per_ipi(
    storms: Sequence[Repetition], sides_of: Callable[[Sequence[Repetition]], Sides]
) -> dict[str, PerSide] | None:
    """Tracepoint name to events per IPI, for every tracepoint that fired.

    Each is of the repetitions in which it was attached. `sides_of` makes the Sides of some.
    """
    counted = [storm for storm in storms if storm.seen is not None]
    if not counted:
        return None
    per_ipi = {}
    for kind in Kind:
        those = [storm for storm in counted if kind not in storm.uncounted]
        seen = np.sum([s.seen[kind] for s in those if s.seen is not None], axis=0)
        if np.any(seen):
            per_ipi[kind.name.lower()] = sides_of(those).per_ipi(seen)
    return per_ipi
