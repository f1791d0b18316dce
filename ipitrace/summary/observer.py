# SPDX-License-Identifier: Apache-2.0
"""The observer cost of each metric's median."""

import numpy as np

from ipitrace.recording.result import ObserverCost
from ipitrace.summary.stats import median, paired_difference
from ipitrace.summary.storms import Measured
from ipitrace.words.metrics import TIMINGS
from ipitrace.words.scenarios import MODES


def observer_costs(measured: Measured) -> dict[str, ObserverCost]:
    """The cost of each traced mode for each metric's median.

    The n-th repetitions of the modes ran consecutively and form the n-th pair.
    """
    costs = {}
    for timing in TIMINGS:
        medians = {
            mode: [median(getattr(r.cycles, timing.name)) for r in measured.of(mode)]
            for mode in MODES
        }
        off, stages, evidence = ([m for m in medians[mode] if m is not None] for mode in MODES)
        if not off or not len(off) == len(stages) == len(evidence):
            continue
        costs[timing.name] = ObserverCost(
            off_p50=int(np.median(off)),
            stages_p50=int(np.median(stages)),
            evidence_p50=int(np.median(evidence)),
            stages=paired_difference(off, stages),
            evidence=paired_difference(off, evidence),
        )
    return costs
