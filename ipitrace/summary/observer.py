# SPDX-License-Identifier: Apache-2.0
"""What watching costs each metric's median."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ipitrace.recording.result import ObserverCost
from ipitrace.summary.stats import (
    median,
    paired_difference,
)
from ipitrace.summary.storms import (
    Cycles,
    Measured,
)
from ipitrace.words.scenarios import Mode

_METRICS: dict[str, Callable[[Cycles], NDArray[np.int64]]] = {
    "send": lambda cycles: cycles.send,
    "deliver": lambda cycles: cycles.deliver,
    "round_trip": lambda cycles: cycles.round_trip,
}


def observer_costs(measured: Measured) -> dict[str, ObserverCost]:
    """What counting and recording cost each metric's median.

    The n-th repetitions of the modes ran next to each other and form the n-th pair.
    """
    costs = {}
    for name, of in _METRICS.items():
        medians = {mode: [median(of(r.cycles)) for r in measured.of(mode)] for mode in Mode}
        off, counting, full = ([m for m in medians[mode] if m is not None] for mode in Mode)
        if not off or not len(off) == len(counting) == len(full):
            continue
        costs[name] = ObserverCost(
            off_p50=int(np.median(off)),
            counting_p50=int(np.median(counting)),
            full_p50=int(np.median(full)),
            counting=paired_difference(off, counting),
            full=paired_difference(off, full),
        )
    return costs
