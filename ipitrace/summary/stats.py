# SPDX-License-Identifier: Apache-2.0
"""Summary statistics."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ipitrace.recording.result import PairedDifference
from ipitrace.recording.row import Histogram, Percentiles, Summary

PERCENTILES = (50, 90, 99)
_TAILS = (50, 90, 99, 99.9)
_PARTS = 16


def summarise(values: NDArray[np.int64]) -> Summary | None:
    """Count, extremes and percentiles of `values` (any shape); None if there are no values.

    Percentile p is the smallest measured value that p percent of all values do
    not exceed (numpy's inverted_cdf). No percentile is interpolated.
    """
    if values.size == 0:
        return None
    p50, p90, p99 = np.percentile(values, PERCENTILES, method="inverted_cdf")
    return Summary(
        int(values.size), int(values.min()), int(p50), int(p90), int(p99), int(values.max())
    )


def percentiles(values: NDArray[np.int64]) -> Percentiles | None:
    """One repetition's percentiles, defined as in summarise(); None if there are no values."""
    if values.size == 0:
        return None
    return Percentiles(*map(int, np.percentile(values, _TAILS, method="inverted_cdf")))


def histogram(values: NDArray[np.int64]) -> Histogram | None:
    """The values up to their 90th percentile, in _PARTS parts; None if there are no values."""
    if values.size == 0:
        return None
    low, high = int(values.min()), int(np.percentile(values, 90, method="inverted_cdf"))
    counts, _edges = np.histogram(values, _PARTS, (low, max(high, low + 1)))
    return Histogram(low, high, tuple(map(int, counts)), int(np.count_nonzero(values > high)))


def median(values: NDArray[np.int64]) -> int | None:
    """The measured value in the middle (the lower one of two); None if there are no values."""
    if values.size == 0:
        return None
    return int(np.percentile(values, 50, method="inverted_cdf"))


def paired_difference(before: Sequence[int], after: Sequence[int]) -> PairedDifference:
    """The median of after[i] - before[i], with the interval from the smallest to the largest.

    That interval holds the true median with interval_confidence(n), whatever the
    distribution (order statistics; David and Nagaraja, Order Statistics, 7.1).
    """
    differences = np.subtract(after, before)
    return PairedDifference(
        int(np.median(differences)), int(differences.min()), int(differences.max())
    )


def interval_confidence(n: int) -> float:
    """The confidence that the extremes of `n` values enclose the median: 1 - 2^(1-n)."""
    return 1 - 2.0 ** (1 - n) if n else 0.0
