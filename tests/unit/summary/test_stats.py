# SPDX-License-Identifier: Apache-2.0
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from strategies import samples

from ipitrace.recording.result import PairedDifference
from ipitrace.summary.stats import (
    PERCENTILES,
    interval_confidence,
    median,
    paired_difference,
    summarise,
)


@given(samples())
def test_every_figure_was_measured_and_is_what_its_name_says(values: NDArray[np.int64]) -> None:
    summary = summarise(values)
    assert summary is not None
    ordered = sorted(values.tolist())
    assert summary.count == len(ordered)
    assert (summary.min, summary.max) == (ordered[0], ordered[-1])
    for percent in PERCENTILES:
        figure = getattr(summary, f"p{percent}")
        # the smallest measured value that `percent` percent of all values do not exceed
        enough = (v for i, v in enumerate(ordered, 1) if 100 * i >= percent * len(ordered))
        assert figure == next(enough), percent


def test_one_value_is_all_figures() -> None:
    summary = summarise(np.array([7], np.int64))
    assert summary is not None
    assert {summary.min, summary.p50, summary.p90, summary.p99, summary.max} == {7}


def test_a_hundred_values() -> None:
    summary = summarise(np.arange(1, 101)[::-1].astype(np.int64))
    assert summary is not None
    assert (summary.p50, summary.p90, summary.p99, summary.max) == (50, 90, 99, 100)


def test_nothing_has_no_figures() -> None:
    assert summarise(np.zeros(0, np.int64)) is None


@given(samples())
def test_the_median_is_the_p50(values: NDArray[np.int64]) -> None:
    summary = summarise(values)
    assert summary is not None
    assert median(values) == summary.p50


def test_nothing_has_no_median() -> None:
    assert median(np.zeros(0, np.int64)) is None


@given(st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 10**9)), min_size=1))
def test_a_paired_difference_lies_within_its_interval(pairs: list[tuple[int, int]]) -> None:
    before, after = zip(*pairs, strict=True)
    found = paired_difference(before, after)
    differences = [b - a for a, b in pairs]
    assert (found.low, found.high) == (min(differences), max(differences))
    assert found.low <= found.median <= found.high


def test_pairs_are_kept_together() -> None:
    """A host that drifts moves both of a pair; the difference does not."""
    assert paired_difference([10, 1000, 100], [15, 1007, 103]) == PairedDifference(5, 3, 7)


def test_the_confidence_of_an_interval() -> None:
    assert interval_confidence(0) == interval_confidence(1) == 0
    # of two values both lie on one side of the median half of the time
    assert interval_confidence(2) == 0.5
    assert interval_confidence(5) < 0.95 < interval_confidence(6)
