# SPDX-License-Identifier: Apache-2.0
"""Two samples of repetitions: intervals, change, p value, effect size. See docs/statistics.md.

Everything is exact for small samples and free of any assumption on the distribution's
shape: order statistics and the ranks of Mann and Whitney's U.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

CONFIDENCE = 0.95
ALPHA = 1 - CONFIDENCE
POWER = 0.9
_MOST_PERMUTATIONS = 20_000  # 8 against 8 have 12,870
_EXACT_UP_TO = 100  # values a side; beyond, U is normal to four digits
_RANK_EFFICIENCY = 3 / math.pi  # of U against Student's t on normal data, see docs

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """An estimate, and its confidence interval; the bounds are None with too few values."""

    value: float
    low: float | None
    high: float | None


def median_interval(values: Values) -> Interval:
    """The median and its 95 % interval from order statistics; it takes 6 values to have one."""
    middle = float(np.median(values))
    places = _interval_places(len(values))
    if places is None:
        return Interval(middle, None, None)
    low, high = np.sort(values)[list(places)]
    return Interval(middle, float(low), float(high))


@functools.cache
def _interval_places(n: int) -> tuple[int, int] | None:
    """Which of `n` values, by size, enclose the median with 95 % confidence."""
    found = stats.quantile_test(np.arange(n, dtype=float), p=0.5).confidence_interval(CONFIDENCE)
    return None if np.isnan(found).any() else (int(found[0]), int(found[1]))


def shift(base: Values, patched: Values) -> Interval:
    """How far `patched` lies above `base`: Hodges and Lehmann's estimate and its interval.

    That is the median of all differences between a value of one and a value of the other;
    the interval holds every shift that a two-sided U test at 5 % does not reject.
    """
    differences = np.sort(np.subtract.outer(patched, base), axis=None)
    value = float(np.median(differences))
    rejected = int(np.count_nonzero(_u_distribution(len(base), len(patched)) <= ALPHA / 2))
    if rejected == 0:
        return Interval(value, None, None)
    return Interval(value, float(differences[rejected - 1]), float(differences[-rejected]))


@functools.cache
def _u_distribution(n: int, m: int) -> Values:
    """P(U <= u) of samples of n and m without ties, for u from 0 to n * m / 2."""
    u = np.arange(n * m // 2 + 1)
    if max(n, m) > _EXACT_UP_TO:
        spread = math.sqrt(n * m * (n + m + 1) / 12)
        return np.asarray(stats.norm.cdf((u + 0.5 - n * m / 2) / spread))
    # Samples whose U is 0, 1, 2, ...: the first value stands above some of m others, then
    # the second, and so on. The exact p value depends on U alone.
    above = np.clip(u[:, np.newaxis] - m * np.arange(n), 0, m) - 0.5
    others = np.broadcast_to(np.arange(m, dtype=float), (len(u), m))
    tested = stats.mannwhitneyu(above, others, alternative="less", method="exact", axis=1)
    return np.asarray(tested.pvalue)


def p_value(base: Values, patched: Values) -> float:
    """Two-sided p value of the U test.

    Exact; where values are equal, over all permutations of them, and where those are too
    many by the normal approximation with its correction for ties.
    """
    ranks = stats.rankdata(np.concatenate([base, patched]))
    n, m = len(base), len(patched)
    sum_of_ranks = ranks[:n].sum()
    if len(np.unique(ranks)) == n + m:
        u = int(sum_of_ranks) - n * (n + 1) // 2
        return min(2 * float(_u_distribution(n, m)[min(u, n * m - u)]), 1.0)
    if ranks.min() == ranks.max():
        return 1.0
    if math.comb(n + m, n) > _MOST_PERMUTATIONS:
        return float(stats.mannwhitneyu(base, patched, method="asymptotic").pvalue)
    sums = ranks[_permutations(n, n + m)].sum(axis=1)
    one_sided = min((sums <= sum_of_ranks).mean(), (sums >= sum_of_ranks).mean())
    return min(2 * float(one_sided), 1.0)


@functools.cache
def _permutations(n: int, total: int) -> NDArray[np.intp]:
    """Every choice of n out of `total` places; shape (choices, n)."""
    return np.array(list(itertools.combinations(range(total), n)))


def cliffs_delta(base: Values, patched: Values) -> float:
    """How often a value of `patched` lies above one of `base`, less how often below: -1 to 1."""
    return float(np.sign(np.subtract.outer(patched, base)).mean())


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values corrected for their number (Holm 1979), in the order given."""
    n = len(p_values)
    order = np.argsort(p_values, kind="stable")
    stepped = np.maximum.accumulate(np.asarray(p_values, float)[order] * (n - np.arange(n)))
    corrected = np.empty(n)
    corrected[order] = np.minimum(stepped, 1.0)
    return [float(p) for p in corrected]


def fewest(family: int) -> int:
    """Repetitions a side with which even one of `family` metrics can be proved to differ."""
    n = 2
    while 2 * family / math.comb(2 * n, n) > ALPHA:
        n += 1
    return n


@functools.cache
def _normal_quantiles(family: int) -> float:
    return float(stats.norm.ppf(1 - ALPHA / (2 * family)) + stats.norm.ppf(POWER))


def wanted(base: Values, patched: Values, change: float, family: int) -> int:
    """About how many repetitions a side it takes to find `change` 9 times of 10.

    The usual sample size for two means of normal values (as far apart as `change`, with the
    spread seen here, at Bonferroni's level for `family` metrics), over the efficiency of U.
    """
    spread = math.sqrt((float(base.var(ddof=1)) + float(patched.var(ddof=1))) / 2)
    n = 2 * (_normal_quantiles(family) * spread / change) ** 2 / _RANK_EFFICIENCY
    return max(math.ceil(n), fewest(family))
