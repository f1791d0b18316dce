# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from comparisons import held_against, noisy, row_of, run_of
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ipitrace.compare.judging import judge
from ipitrace.compare.model import MinimumEffect, Verdict
from ipitrace.compare.pairs import MetricPair
from ipitrace.compare.statistics import (
    cliffs_delta,
    fewest,
    holm,
    median_interval,
    p_value,
    shift,
    student,
    wanted,
)
from ipitrace.words.metrics import CYCLES_METRICS


def arrays(*, unique: bool = False, most: int = 9) -> st.SearchStrategy[np.ndarray]:
    return st.lists(st.integers(-most, most), min_size=2, max_size=most, unique=unique).map(
        lambda values: np.array(values, float)
    )


@settings(deadline=None)  # scipy takes its time at first
@given(arrays(unique=True), arrays(unique=True))
def test_the_p_value_is_scipys_exact_one_where_nothing_is_equal(
    one: np.ndarray, other: np.ndarray
) -> None:
    other = other + 0.5
    expected = stats.mannwhitneyu(one, other, method="exact").pvalue
    assert p_value(one, other) == pytest.approx(expected)


@settings(deadline=None)  # scipy takes its time at first
@given(arrays(), arrays())
def test_p_value_and_effect_have_their_properties(one: np.ndarray, other: np.ndarray) -> None:
    p = p_value(one, other)
    assert 0 < p <= 1
    assert p == pytest.approx(p_value(other, one))
    assert -1 <= cliffs_delta(one, other) == -cliffs_delta(other, one) <= 1
    assert p_value(one, one.copy()) == 1


@settings(deadline=None, max_examples=60)
@given(arrays(most=5), arrays(most=5))
def test_ties_are_permuted(one: np.ndarray, other: np.ndarray) -> None:
    ways = stats.mannwhitneyu(one, other, method=stats.PermutationMethod(n_resamples=9999))
    assert p_value(one, other) == pytest.approx(min(ways.pvalue, 1))


@pytest.mark.parametrize(
    ("n", "m", "moved"), [(10, 10, 5), (20, 20, 6), (30, 25, 7), (100, 100, 6)]
)
def test_rare_values_are_permuted_however_many_there_are(n: int, m: int, moved: int) -> None:
    """`moved` of one side differ from all others: a hypergeometric probability."""
    other = np.array([1.0] * moved + [0.0] * (m - moved))
    exact = 2 * stats.hypergeom(n + m, moved, m).pmf(moved)
    assert p_value(np.zeros(n), other) == pytest.approx(exact)
    rough = stats.mannwhitneyu(np.zeros(n), other, method="asymptotic").pvalue
    assert rough < exact, "the normal approximation promises too much"


def test_very_many_ties_are_approximated() -> None:
    rng = np.random.default_rng(4)
    one, other = rng.integers(0, 500, 150).astype(float), rng.integers(40, 540, 150).astype(float)
    expected = stats.mannwhitneyu(one, other, method="asymptotic").pvalue
    assert p_value(one, other) == pytest.approx(expected)


@settings(deadline=None)
@given(st.integers(2, 9), st.integers(2, 9), st.integers(0, 1 << 30))
def test_students_t_is_scipys(n: int, m: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    one, other = rng.normal(size=n), rng.normal(0.5, 1, size=m)
    p, found = student(one, other)
    expected = stats.ttest_ind(other, one)
    interval = expected.confidence_interval(0.95)
    assert p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_students_t_with_one_value_on_a_side() -> None:
    p, found = student(np.array([1.0, 2.0, 4.0]), np.array([9.0]))
    expected = stats.ttest_ind([9.0], [1.0, 2.0, 4.0])
    assert p == pytest.approx(expected.pvalue)
    assert found.value == pytest.approx(9 - 7 / 3)
    assert student(np.array([1.0, 1.0]), np.array([1.0]))[0] == 1
    assert student(np.array([1.0, 1.0]), np.array([2.0]))[0] == 0
    with pytest.raises(ValueError, match="no spread"):
        student(np.array([1.0]), np.array([2.0]))


@settings(deadline=None)  # scipy takes its time at first
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
        found = held_against(base, patched)
        moved = [row for row in found.rows if row.verdict in {Verdict.BETTER, Verdict.WORSE}]
        alarms += bool(moved)
        headlines += any(row.headline for row in moved)
    assert headlines <= 50
    assert alarms <= 50


@pytest.mark.parametrize(
    ("n_base", "n_patched", "heavy"), [(3, 3, False), (3, 3, True), (2, 1, False), (6, 6, False)]
)
def test_what_differs_from_run_to_run_raises_few_false_alarms(
    n_base: int,
    n_patched: int,
    heavy: bool,  # noqa: FBT001
) -> None:
    """Every run is off by 5 % or so of its own, while its repetitions vary by 2 %."""
    rng = np.random.default_rng(11)
    metrics = [metric for metric in CYCLES_METRICS if metric.headline]

    def side(n: int) -> list[tuple[np.ndarray, ...]]:
        off = 0.05 * (rng.standard_t(3, n) if heavy else rng.normal(size=n))
        return [tuple(np.exp(10 + run + 0.02 * rng.normal(size=6)) for run in off) for _ in metrics]

    alarms = 0
    for _ in range(500):
        family = [
            MetricPair("self", metric, base, patched)
            for metric, base, patched in zip(metrics, side(n_base), side(n_patched), strict=True)
        ]
        rows = judge(family, MinimumEffect(), {})
        alarms += any(row.verdict in {Verdict.BETTER, Verdict.WORSE} for row in rows)
    assert alarms <= 25


def test_one_run_a_side_does_not_know_what_differs_from_run_to_run() -> None:
    """Why the sentence says so: the same runs, one of each, alarm all the time."""
    rng = np.random.default_rng(12)
    alarms = 0
    for _ in range(50):
        base, patched = (
            run_of(row_of("self", noisy(rng, 10, 0.02, rng.lognormal(0, 0.05)))) for _ in range(2)
        )
        found = held_against(base, patched)
        alarms += found.verdict in {Verdict.BETTER, Verdict.WORSE}
        assert "differences between runs are not taken into account" in found.sentence
    assert alarms > 15


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


@pytest.mark.parametrize("outliers", [0.0, 0.05])
def test_what_is_said_to_be_wanted_is_enough(outliers: float) -> None:
    rng = np.random.default_rng(10)
    cv, family, tries = 0.05, 5, 300

    def sample(n: int, moved: float = 0.0) -> np.ndarray:
        return rng.normal(moved, cv, n) + np.log(3) * (rng.random(n) < outliers)

    n = wanted(sample(500), sample(500), 0.05, family)
    assert 30 <= n <= 45
    found = sum(p_value(sample(n), sample(n, 0.05)) * family <= 0.05 for _ in range(tries))
    assert 0.8 <= found / tries <= 0.97


def test_what_is_wanted_of_few_values_is_about_right() -> None:
    rng = np.random.default_rng(14)
    told = [wanted(rng.normal(size=6), rng.normal(size=6), 1.0, 5) for _ in range(300)]
    assert 20 <= np.median(told) <= 45


@pytest.mark.parametrize(("storms", "least", "most"), [(1, 0.1, 0.2), (5, 0.0, 0.01)])
def test_the_self_test_of_docs_ci_does_not_fail_by_chance(
    storms: int, least: float, most: float
) -> None:
    """Nothing against nothing, 10 visits a side, while one storm in ten takes three times as long.

    It has to be the same: why a visit there counts by the median of five storms.
    """
    rng = np.random.default_rng(13)

    def visits() -> tuple[np.ndarray, ...]:
        disturbed = np.where(rng.random((10, storms)) < 0.1, np.log(3), 0)
        return tuple(np.exp(10 + one + 0.03 * rng.normal(size=storms)) for one in disturbed)

    tries, failed = 300, 0
    for _ in range(tries):
        pair = MetricPair("unicast-running", CYCLES_METRICS[0], visits(), visits())
        (row,) = judge([pair], MinimumEffect(cycles=0.4), {})
        failed += row.verdict != Verdict.SAME
    assert least <= failed / tries <= most
