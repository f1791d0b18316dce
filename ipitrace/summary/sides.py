# SPDX-License-Identifier: Apache-2.0
"""Converts counts per vCPU to counts per IPI, separately for sender and targets."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ipitrace.recording.row import PerSide
from ipitrace.summary.storms import Repetition
from ipitrace.words.events import Kind
from ipitrace.words.scenarios import SENDER, Pattern, Scenario


@dataclass(frozen=True)
class Sides:
    """The scenario, its targets, the number of sends and the number of deliveries."""

    scenario: Scenario
    targets: tuple[int, ...]
    sent: int
    delivered: int

    def per_ipi(self, per_vcpu: Sequence[int] | NDArray[np.int64]) -> PerSide:
        """Events per send on the sender, and per delivery on the targets."""
        if self.scenario.pattern == Pattern.SELF:
            return PerSide(int(per_vcpu[SENDER]) / self.sent, 0.0)
        on_targets = sum(int(per_vcpu[t]) for t in self.targets)
        return PerSide(int(per_vcpu[SENDER]) / self.sent, on_targets / self.delivered)


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
