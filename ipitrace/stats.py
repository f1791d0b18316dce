# SPDX-License-Identifier: Apache-2.0
"""Numbers that stand for many."""

import numpy as np
from numpy.typing import NDArray

from ipitrace.model import Summary

PERCENTILES = (50, 90, 99)


def summarise(values: NDArray[np.int64]) -> Summary | None:
    """Count, extremes and percentiles of `values` (any shape); None of nothing.

    Percentile p is the smallest measured value that p percent of all values do
    not exceed (numpy's inverted_cdf), never an interpolation.
    """
    if values.size == 0:
        return None
    p50, p90, p99 = np.percentile(values, PERCENTILES, method="inverted_cdf")
    return Summary(
        int(values.size), int(values.min()), int(p50), int(p90), int(p99), int(values.max())
    )
