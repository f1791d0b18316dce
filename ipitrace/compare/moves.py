# SPDX-License-Identifier: Apache-2.0
"""Whether a path's share of the IPIs moved to or from better paths, or worse ones."""

from collections.abc import Iterable, Mapping

import numpy as np

from ipitrace.compare.pairs import MetricPair
from ipitrace.compare.statistics import Values
from ipitrace.words.metrics import path_of
from ipitrace.words.paths import PATH_RANKS


def moves(found: Iterable[MetricPair]) -> dict[tuple[str, str], MetricPair]:
    """For each path with a rank: the shares of better paths minus those of worse ones.

    This difference grows when IPIs move from the path to a better one, or from a worse one to
    the path. IPIs that move to `unknown`, or to a path of the same rank, do not change it.

    Returns:
        By scenario and metric, a pair of that metric with these differences as its values.
    """
    by_scenario: dict[str, dict[str, MetricPair]] = {}
    for pair in found:
        path = path_of(pair.metric)
        if path is not None and path in PATH_RANKS:
            by_scenario.setdefault(pair.scenario, {})[path] = pair
    return {
        (pair.scenario, pair.metric.name): MetricPair(
            pair.scenario,
            pair.metric,
            _towards_better(path, {other: one.base for other, one in paths.items()}),
            _towards_better(path, {other: one.patched for other, one in paths.items()}),
        )
        for paths in by_scenario.values()
        for path, pair in paths.items()
    }


def _towards_better(path: str, shares: Mapping[str, tuple[Values, ...]]) -> tuple[Values, ...]:
    """The difference for each repetition of one side's recordings."""
    signs = [np.sign(PATH_RANKS[path] - PATH_RANKS[other]) for other in shares]
    return tuple(
        np.sum([sign * values for sign, values in zip(signs, of_paths, strict=True)], axis=0)
        for of_paths in zip(*shares.values(), strict=True)
    )
