# SPDX-License-Identifier: Apache-2.0
"""Converts counts per vCPU to counts per IPI, separately for sender and targets."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ipitrace.recording.row import PerSide
from ipitrace.summary.storms import Repetition
from ipitrace.words.events import Kind
from ipitrace.words.scenarios import SENDER


@dataclass(frozen=True)
class Sides:
    """The targets other than the sender, the number of sends, and of deliveries to these targets.

    What happens on the sender counts for the sender only, even if it is one of the targets.
    """

    targets: tuple[int, ...]
    sent: int
    delivered: int

    def per_ipi(self, per_vcpu: Sequence[int] | NDArray[np.int64]) -> PerSide:
        """Events per send on the sender, and per delivery on the targets."""
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


def events_per_ipi(storms: Sequence[Repetition], sides: Sides) -> dict[str, PerSide] | None:
    """Tracepoint name to events per IPI, for every tracepoint that fired."""
    counted = [storm.seen for storm in storms if storm.seen is not None]
    if not counted:
        return None
    seen = np.stack(counted).sum(axis=0)
    return {kind.name.lower(): sides.per_ipi(seen[kind]) for kind in Kind if seen[kind].any()}
