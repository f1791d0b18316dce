# SPDX-License-Identifier: Apache-2.0
"""How fast and how long a run may storm."""

import time

import pytest

from ipitrace.base.errors import MeasurementError, UsageError
from ipitrace.measure.limits import (
    DEFAULT_RATE_HZ,
    DEFAULT_TIME_S,
    GRACE_S,
    Budget,
    check_time,
    chosen_limits,
    limited_pace,
)
from ipitrace.recording.result import RunLimits

DEFAULTS = RunLimits(DEFAULT_RATE_HZ, DEFAULT_TIME_S, by_default=True)


@pytest.mark.parametrize(
    ("rate", "seconds", "ours", "wanted"),
    [
        (None, None, True, None),
        (None, None, False, DEFAULTS),
        (0.0, 0.0, False, None),
        (0.0, None, False, RunLimits(None, DEFAULT_TIME_S, by_default=False)),
        (None, 0.0, False, RunLimits(DEFAULT_RATE_HZ, None, by_default=False)),
        (500.0, None, True, RunLimits(500.0, None, by_default=False)),
        (500.0, 7.0, False, RunLimits(500.0, 7.0, by_default=False)),
    ],
)
def test_which_limits_hold(
    rate: float | None,
    seconds: float | None,
    ours: bool,  # noqa: FBT001
    wanted: RunLimits | None,
) -> None:
    assert chosen_limits(rate, seconds, ours=ours) == wanted


def test_the_pace_keeps_to_the_rate() -> None:
    assert limited_pace(0, None, 3e9) == 0
    assert limited_pace(0, DEFAULTS, 3e9) == 300_000
    assert limited_pace(60_000, DEFAULTS, 3e9) == 300_000
    assert limited_pace(2_700_000, DEFAULTS, 3e9) == 2_700_000
    assert limited_pace(0, RunLimits(7.0, None, by_default=False), 10.0) == 2  # never faster
    assert limited_pace(0, DEFAULTS, 3e9, senders=4) == 1_200_000  # of all senders together
    assert limited_pace(60_000, None, 3e9, senders=4) == 60_000


def test_a_plan_that_takes_too_long_is_refused() -> None:
    check_time([(100_000, 600_000)], DEFAULTS, 1e9)  # 60 s
    check_time([(10**9, 10**9)], None, 1e9)
    with pytest.raises(UsageError, match=r"would take 61 s or more, and --max-time is 60 s"):
        check_time([(100_000, 600_000), (1000, 1_000_000)], DEFAULTS, 1e9)


def test_time_is_spent() -> None:
    budget = Budget(RunLimits(None, 1e-9, by_default=False))
    budget.begin()
    budget.check()  # the way to the guest is no storm
    time.sleep(0.001)
    budget.end(None)
    with pytest.raises(MeasurementError, match="took longer than --max-time, 1e-09 s"):
        budget.begin()


def test_a_storm_that_goes_on_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    budget = Budget(RunLimits(None, 2.0, by_default=False))
    now_s = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])
    budget.begin()
    now_s[0] += 3.0
    budget.check()
    budget.end(1.5)  # the guest says so
    budget.begin()
    now_s[0] += GRACE_S + 0.4
    budget.check()
    now_s[0] += 0.2
    with pytest.raises(MeasurementError, match="--max-time"):
        budget.check()


def test_without_a_limit_there_is_no_end() -> None:
    budget = Budget(None)
    budget.begin()
    budget.end(1e9)
    budget.begin()
    budget.check()
