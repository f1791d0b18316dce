# SPDX-License-Identifier: Apache-2.0
"""Check the clocks: count pairs of stamps in which an effect precedes its cause."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Stamps = NDArray[np.int64] | NDArray[np.uint64]


def count_violations(
    pairs: Mapping[str, tuple[Stamps, Stamps]],
    bound_cycles: float | NDArray[np.float64] = 0.0,
) -> dict[str, int]:
    """Count, by kind, the pairs in which the effect precedes the cause by more than the bound.

    Args:
        pairs: kind ("accept before send") to (earlier, later): two arrays of equal shape of
            TSC stamps of one clock. Stamps are compared modulo 2^64, so a guest's TSC may wrap.
        bound_cycles: the largest error of a stamp: one number for all, or an array that
            broadcasts against every pair. 0 for stamps that were not mapped.
    """
    return {
        kind: int(np.count_nonzero(_lead(earlier, later) < -np.asarray(bound_cycles)))
        for kind, (earlier, later) in pairs.items()
    }


def _lead(earlier: Stamps, later: Stamps) -> NDArray[np.int64]:
    """The later stamp minus the earlier stamp, modulo 2^64 and signed."""
    return np.asarray(later).astype(np.int64) - np.asarray(earlier).astype(np.int64)
