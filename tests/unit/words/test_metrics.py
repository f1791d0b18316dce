# SPDX-License-Identifier: Apache-2.0
from dataclasses import fields
from typing import Any

import pytest

from ipitrace.recording.row import RepetitionFigures, ScenarioResult
from ipitrace.summary.storms import Cycles
from ipitrace.words.metrics import ALL_TIMINGS, SIDES, TIMINGS, cycles_metric, expand
from ipitrace.words.paths import PATHS, IpiPath
from ipitrace.words.stages import STAGES


def names(kind: type[Any]) -> list[str]:
    return [field.name for field in fields(kind)]


@pytest.mark.parametrize("kind", [RepetitionFigures, ScenarioResult])
def test_each_timing_has_its_field(kind: type[Any]) -> None:
    found = [name for name in names(kind) if name.endswith("_cycles") and name != "pace_cycles"]
    assert sorted(found) == sorted(timing.field for timing in ALL_TIMINGS)


def test_each_timing_is_measured() -> None:
    assert names(Cycles)[: len(TIMINGS)] == [timing.name for timing in TIMINGS]


def test_how_timings_are_spelled() -> None:
    assert [timing.letter for timing in TIMINGS] == ["S", "D", "R"]
    assert TIMINGS[2].label == "round trip (R)"
    assert (
        cycles_metric("send", "p90").about
        == "p90 of the cycles that the sender spends in sending (S)"
    )
    assert [expand(timing.name) for timing in TIMINGS] == [
        (f"{timing.name}.p50",) for timing in TIMINGS
    ]


def test_stages_are_on_a_side_that_metrics_have() -> None:
    assert {spec.side for spec in STAGES} == set(SIDES)


def test_each_path_has_its_row() -> None:
    assert [spec.path for spec in PATHS] == list(IpiPath)


def test_the_last_target_is_compared_but_decides_nothing() -> None:
    assert expand("last_deliver") == ("last_deliver.p50",)
    assert not cycles_metric("last_deliver", "p50").headline
    assert cycles_metric("deliver", "p50").headline
