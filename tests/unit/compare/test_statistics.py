# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from comparisons import TRUTH, noisy, row_of, run_of
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ipitrace.compare import Settings, compare
from ipitrace.compare.model import Verdict
from ipitrace.compare.statistics import (
    cliffs_delta,
    fewest,
    holm,
    median_interval,
    p_value,
    shift,
    wanted,
)

NAMES = ("base", "patched")


def arrays(*, unique: bool = False) -> st.SearchStrategy[np.ndarray]:
    return st.lists(st.integers(-9, 9), min_size=2, max_size=9, unique=unique).map(
        lambda values: np.array(values, float)
    )


@given(arrays(unique=True), arrays(unique=True))
def test_the_p_value_is_scipys_exact_one_where_nothing_is_equal(
    one: np.ndarray, other: np.ndarray
) -> None:
    other = other + 0.5
    expected = stats.mannwhitneyu(one, other, method="exact").pvalue
    assert p_value(one, other) == pytest.approx(expected)


@given(arrays(), arrays())
def test_p_value_and_effect_have_their_properties(one: np.ndarray, other: np.ndarray) -> None:
    p = p_value(one, other)
    assert 0 < p <= 1
    assert p == pytest.approx(p_value(other, one))
    assert -1 <= cliffs_delta(one, other) == -cliffs_delta(other, one) <= 1
    assert p_value(one, one.copy()) == 1


def test_ties_are_permuted() -> None:
    one, other = np.array([1, 1, 1, 2.0]), np.array([2, 2, 3, 3.0])
    ways = stats.mannwhitneyu(one, other, method=stats.PermutationMethod(n_resamples=9999))
    assert p_value(one, other) == pytest.approx(ways.pvalue)


@given(arrays(), arrays(), st.integers(-99, 99))
def test_a_shift_moves_with_the_data(one: np.ndarray, other: np.ndarray, by: int) -> None:
    there, moved = shift(one, other), shift(one, other + by)
    assert moved.value == pytest.approx(there.value + by)
    if there.low is not None and there.high is not None:
        assert there.low <= there.value <= there.high
        assert (moved.low, moved.high) == (there.low + by, there.high + by)


def test_the_interval_is_what_the_test_does_not_reject() -> None:
    rng = np.random.default_rng(5)
    for _ in range(20):
        one, other = rng.normal(size=7), rng.normal(size=6)
        found = shift(one, other)
        assert found.low is not None
        assert found.high is not None
        for bound, outwards in ((found.low, -1e-9), (found.high, 1e-9)):
            assert stats.mannwhitneyu(one + bound + outwards, other, method="exact").pvalue <= 0.05
            assert stats.mannwhitneyu(one + bound - outwards, other, method="exact").pvalue > 0.05


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(6)
    tries = 2000
    medians = shifts = 0
    for _ in range(tries):
        one, other = rng.exponential(size=6), rng.exponential(size=6) + 0.3
        middle, moved = median_interval(one), shift(one, other)
        medians += bool(middle.low is not None and middle.low <= np.log(2) <= (middle.high or 0))
        shifts += bool(moved.low is not None and moved.low <= 0.3 <= (moved.high or 0))
    assert 0.95 <= medians / tries <= 0.985  # 1 - 2^-5
    assert 0.945 <= shifts / tries <= 0.975  # 1 - 2 * 19/924


@pytest.mark.parametrize(("n", "known"), [(5, False), (6, True), (200, True)])
def test_too_few_values_have_no_interval(n: int, known: bool) -> None:  # noqa: FBT001
    assert (median_interval(np.arange(n, dtype=float)).low is not None) == known


def test_many_values_are_normal() -> None:
    rng = np.random.default_rng(7)
    one, other = rng.normal(size=150), rng.normal(0.4, 1, size=120)
    expected = stats.mannwhitneyu(one, other, method="asymptotic").pvalue
    assert p_value(one, other) == pytest.approx(expected, rel=0.01)
    assert shift(one, other).value == pytest.approx(0.4, abs=0.3)


def test_holm_is_the_textbooks() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(("family", "least"), [(1, 4), (5, 5), (20, 6), (24, 7), (300, 8)])
def test_how_few_can_prove_anything(family: int, least: int) -> None:
    assert fewest(family) == least
    low, high = np.arange(least, dtype=float), np.arange(least, dtype=float) + 1000
    assert family * p_value(low, high) <= 0.05
    assert family * p_value(low[1:], high[1:]) > 0.05


def test_base_against_base_raises_few_false_alarms() -> None:
    """1000 pairs of runs of two scenarios, nothing changed; any verdict anywhere counts."""
    rng = np.random.default_rng(8)
    alarms = headlines = 0
    for _ in range(1000):
        base, patched = (
            run_of(*(row_of(name, noisy(rng, 6, 0.05)) for name in ("unicast-running", "self")))
            for _side in range(2)
        )
        found = compare(base, patched, NAMES, Settings())
        moved = [row for row in found.rows if row.verdict in {Verdict.BETTER, Verdict.WORSE}]
        alarms += bool(moved)
        headlines += any(row.headline for row in moved)
    assert headlines <= 50
    assert alarms <= 50


@pytest.mark.parametrize(("cv", "n"), [(0.01, 6), (0.02, 9), (0.05, 45), (0.1, 175)])
def test_a_shift_of_5_percent_is_found_with_the_repetitions_the_docs_name(
    cv: float, n: int
) -> None:
    rng = np.random.default_rng(9)
    tries, found = 100, 0
    for _ in range(tries):
        one = np.array([m["deliver"] for m in noisy(rng, n, cv)])
        other = np.array([m["deliver"] for m in noisy(rng, n, cv, 1.05)])
        moved = shift(np.log(one), np.log(other))
        family = 5  # one scenario's headline metrics
        found += bool(p_value(one, other) * family <= 0.05 and moved.value >= np.log(1.02))
    assert found >= 0.9 * tries


def test_what_is_said_to_be_wanted_is_enough() -> None:
    rng = np.random.default_rng(10)
    cv, family = 0.05, 5
    seen = np.log([m["deliver"] / TRUTH["deliver"] for m in noisy(rng, 500, cv)])
    n = wanted(seen, seen, 0.05, family)
    assert 30 <= n <= 45
    found = sum(
        p_value(rng.normal(0, cv, n), rng.normal(0.05, cv, n)) * family <= 0.05 for _ in range(300)
    )
    assert 0.8 <= found / 300 <= 0.97
