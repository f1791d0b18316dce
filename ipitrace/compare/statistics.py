# SPDX-License-Identifier: Apache-2.0
"""Two samples of repetitions: intervals, change, p value, effect size. See docs/statistics.md.

The methods are exact for small samples and do not assume a shape of the distribution: order
statistics and the ranks of Mann and Whitney's U. Only Student's t assumes a shape. It is used
for recordings only, if there are too few of them for ranks.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

CONFIDENCE = 0.95
ALPHA = 1 - CONFIDENCE
POWER = 0.9
_MOST_STEPS = 100_000_000  # to count permutations; enough for 60 and 60 different values
_EXACT_UP_TO = 100  # values a side; beyond, U is normal to four digits
_RANK_EFFICIENCY = 3 / math.pi  # of U relative to Student's t on normal data, see docs

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """An estimate and its confidence interval; the bounds are None if there are too few values."""

    value: float
    low: float | None
    high: float | None


def median_interval(values: Values) -> Estimate:
    """The median and its 95 % interval from order statistics, which needs 6 values."""
    middle = float(np.median(values))
    places = _interval_places(len(values))
    if places is None:
        return Estimate(middle, None, None)
    low, high = np.sort(values)[list(places)]
    return Estimate(middle, float(low), float(high))


@functools.cache
def _interval_places(n: int) -> tuple[int, int] | None:
    """Which of `n` values, by size, enclose the median with 95 % confidence."""
    found = stats.quantile_test(np.arange(n, dtype=float), p=0.5).confidence_interval(CONFIDENCE)
    return None if np.isnan(found).any() else (int(found[0]), int(found[1]))


def shift(base: Values, patched: Values) -> Estimate:
    """The shift from `base` to `patched`: Hodges and Lehmann's estimate and its interval.

    The estimate is the median of all differences between a value of `patched` and one of `base`.
    The interval contains every shift that a two-sided U test at 5 % does not reject.
    """
    differences = np.sort(np.subtract.outer(patched, base), axis=None)
    value = float(np.median(differences))
    rejected = int(np.count_nonzero(_u_distribution(len(base), len(patched)) <= ALPHA / 2))
    if rejected == 0:
        return Estimate(value, None, None)
    return Estimate(value, float(differences[rejected - 1]), float(differences[-rejected]))


@functools.lru_cache(maxsize=4)  # 16 MB each at the maximum number of repetitions
def _u_distribution(n: int, m: int) -> Values:
    """P(U <= u) of samples of n and m without ties, for u from 0 to n * m / 2."""
    u = np.arange(n * m // 2 + 1)
    if max(n, m) > _EXACT_UP_TO:
        spread = math.sqrt(n * m * (n + m + 1) / 12)
        return np.asarray(stats.norm.cdf((u + 0.5 - n * m / 2) / spread))
    # Samples whose U is 0, 1, 2, ...: the first value is above some of m others, then the
    # second one, and so on. The exact p value depends only on U.
    above = np.clip(u[:, np.newaxis] - m * np.arange(n), 0, m) - 0.5
    others = np.broadcast_to(np.arange(m, dtype=float), (len(u), m))
    tested = stats.mannwhitneyu(above, others, alternative="less", method="exact", axis=1)
    return np.asarray(tested.pvalue)


def p_value(base: Values, patched: Values) -> float:
    """Two-sided p value of the U test.

    It is exact, also for equal values: over all permutations. If these are too many, the normal
    approximation with its correction for ties is used.
    """
    ranks = stats.rankdata(np.concatenate([base, patched]))
    n, m = len(base), len(patched)
    sum_of_ranks = ranks[:n].sum()
    if len(np.unique(ranks)) == n + m:
        u = int(sum_of_ranks) - n * (n + 1) // 2
        return min(2 * float(_u_distribution(n, m)[min(u, n * m - u)]), 1.0)
    if ranks.min() == ranks.max():
        return 1.0
    exact = _tied_p_value(np.rint(2 * ranks).astype(int), n)
    if exact is not None:
        return exact
    return float(stats.mannwhitneyu(base, patched, method="asymptotic").pvalue)


def _tied_p_value(scores: NDArray[np.int_], n: int) -> float | None:
    """Two-sided p value of the first `n` scores' sum among all choices of n of them.

    Counts the choices by their sum (Streitberg and Roehmel's shift algorithm). None if that
    takes too long.
    """
    scores = scores - scores.min()
    scores //= np.gcd.reduce(scores)
    n, chosen = min((n, scores[:n]), (len(scores) - n, scores[n:]), key=lambda side: side[0])
    greatest = int(np.sort(scores)[-n:].sum())
    if len(scores) * n * greatest > _MOST_STEPS:
        return None
    ways = np.zeros((n + 1, greatest + 1))
    ways[0, 0] = 1
    for score in scores:
        ways[1:, score:] += ways[:-1, : greatest + 1 - score].copy()
    seen = int(chosen.sum())
    one_sided = min(ways[n, : seen + 1].sum(), ways[n, seen:].sum()) / ways[n].sum()
    return min(2 * float(one_sided), 1.0)


def student(base: Values, patched: Values) -> tuple[float, Estimate]:
    """Student's t with a pooled spread: the p value, and the shift from `base` to `patched`.

    One side may be a single value: the spread is then that of the other side.

    Raises:
        ValueError: there are fewer than three values.
    """
    freedom = len(base) + len(patched) - 2
    if freedom < 1:
        raise ValueError("one value on each side has no spread")
    value = float(patched.mean() - base.mean())
    error = spread(base, patched) * math.sqrt(1 / len(base) + 1 / len(patched))
    if error == 0:
        return float(value == 0), Estimate(value, value, value)
    half = float(stats.t.ppf(1 - ALPHA / 2, freedom)) * error
    return 2 * float(stats.t.sf(abs(value) / error, freedom)), Estimate(
        value, value - half, value + half
    )


def spread(base: Values, patched: Values) -> float:
    """The pooled standard deviation of both samples; 0 if it cannot be computed."""
    squares = sum(float(np.square(side - side.mean()).sum()) for side in (base, patched))
    return math.sqrt(squares / max(len(base) + len(patched) - 2, 1))


def _usual_spread(base: Values, patched: Values) -> float:
    """The pooled standard deviation of both samples, robust against outliers."""
    apart = np.concatenate([side - np.median(side) for side in (base, patched)])
    usual = float(stats.median_abs_deviation(apart, scale="normal"))
    n = len(apart)
    return usual * math.sqrt(n / (n - 2)) if usual and n > 2 else spread(base, patched)  # noqa: PLR2004 - the medians' degrees of freedom


def cliffs_delta(base: Values, patched: Values) -> float:
    """The share of pairs with `patched` above `base`, minus the share with it below: -1 to 1."""
    return float(np.sign(np.subtract.outer(patched, base)).mean())


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values, corrected for multiple tests (Holm 1979), in the order given."""
    n = len(p_values)
    order = np.argsort(p_values, kind="stable")
    stepped = np.maximum.accumulate(np.asarray(p_values, float)[order] * (n - np.arange(n)))
    corrected = np.empty(n)
    corrected[order] = np.minimum(stepped, 1.0)
    return [float(p) for p in corrected]


def fewest(family: int) -> int:
    """The least number of values a side that can show a difference in one of `family` metrics."""
    n = 2
    while 2 * family / math.comb(2 * n, n) > ALPHA:
        n += 1
    return n


@functools.cache
def _normal_quantiles(family: int) -> float:
    return float(stats.norm.ppf(1 - ALPHA / (2 * family)) + stats.norm.ppf(POWER))


def wanted(base: Values, patched: Values, change: float, family: int) -> int:
    """About how many values a side are needed to find `change` 9 times out of 10.

    The usual sample size for two means of normal values (as far apart as `change`, with the
    spread seen here, at Bonferroni's level for `family` metrics), divided by the efficiency of U.
    The spread is from the median deviation, which is as robust against outliers as U.
    """
    deviations = _usual_spread(base, patched) / change
    n = 2 * (_normal_quantiles(family) * deviations) ** 2 / _RANK_EFFICIENCY
    return max(math.ceil(n), fewest(family))
