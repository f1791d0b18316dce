# SPDX-License-Identifier: Apache-2.0
"""The pace of blocked targets follows from the TSC's rate that the run knows."""

from dataclasses import replace

import pytest

from ipitrace.base.errors import UsageError
from ipitrace.host.fingerprint import read_fingerprint
from ipitrace.measure import plan
from ipitrace.measure.plan import known_tsc_hz, make_plan, pace_of
from ipitrace.measure.request import WARMUP, RunRequest
from ipitrace.storm.limits import FASTEST_TSC_HZ
from ipitrace.words.scenarios import Mode, select_scenarios

BLOCKED, RUNNING, OVERCOMMIT = select_scenarios(
    ["unicast-blocked", "unicast-running", "unicast-overcommit"]
)
REQUEST = RunRequest((BLOCKED, RUNNING), count=100, pace_cycles=None, trace=False)


@pytest.fixture(autouse=True)
def polls_for_200_us(monkeypatch: pytest.MonkeyPatch) -> None:
    host = replace(read_fingerprint(), kvm_parameters={"kvm.halt_poll_ns": "200000"})
    monkeypatch.setattr(plan, "read_fingerprint", lambda: host)


@pytest.mark.parametrize(
    ("tsc_hz", "cycles"),
    [
        (3e9, 2_700_000),
        (2e9, 1_800_000),
        (5e9, 4_500_000),
        (2_596.1e6, 2_340_000),  # as of 2,600 MHz
        (2_112e6, 1_890_000),
        (20e6, 18_000),  # an emulator's
    ],
)
def test_a_blocked_target_waits_equally_long_at_every_rate(tsc_hz: float, cycles: int) -> None:
    assert pace_of(REQUEST, BLOCKED, tsc_hz) == cycles
    assert pace_of(REQUEST, RUNNING, tsc_hz) == 60_000
    assert pace_of(replace(REQUEST, pace_cycles=7), BLOCKED, tsc_hz) == 7


@pytest.mark.parametrize("mhz", [1_992, 2_112, 2_245.5, 2_400, 2_450, 2_533.3, 2_596, 2_995, 3_696])
def test_two_measurements_of_one_rate_give_the_same_pace(mhz: float) -> None:
    """Or the two runs could not be compared."""
    paces = {pace_of(REQUEST, BLOCKED, mhz * 1e6 * (1 + ppm / 1e6)) for ppm in (-500, 0, 500)}
    assert len(paces) == 1
    (pace,) = paces
    assert pace / (mhz * 1e6) > 2 * 0.0002 + 0.0004


def test_the_rate_is_the_guest_s_else_the_host_s_else_the_fastest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plan, "tsc_hz_of_host", lambda: 2.5e9)
    assert known_tsc_hz(2_000_000) == 2e9
    assert known_tsc_hz(None) == 2.5e9
    monkeypatch.setattr(plan, "tsc_hz_of_host", lambda: None)
    assert known_tsc_hz(None) == FASTEST_TSC_HZ


def test_a_plan_has_the_pace_of_its_rate() -> None:
    made = make_plan(REQUEST, [BLOCKED], traced=False, ours=True, tsc_hz=2e9)
    assert made.paces == {"unicast-blocked": 1_800_000}
    assert next(made.storms()) == (117, 1_800_000)


def test_the_senders_of_a_ring_share_the_rate() -> None:
    (ring,) = select_scenarios(["ring"])
    limited = replace(REQUEST, max_rate_hz=10_000.0, max_time_s=0.0)
    kinds = {"traced": False, "ours": False, "tsc_hz": 2e9}
    made = make_plan(limited, [ring, RUNNING], n_vcpus=8, **kinds)
    assert made.paces == {"ring": 1_600_000, "unicast-running": 200_000}


def test_repetitions_with_accounting_are_planned_and_limited() -> None:
    traced = replace(REQUEST, trace=True, probe_costs=True, repeat=2)
    planned = make_plan(traced, [RUNNING], traced=True, ours=True, tsc_hz=2e9)
    assert planned.accounted == (Mode.STAGES, Mode.EVIDENCE)
    assert {turn.mode for turn in planned.accounted_turns(1)} == {Mode.STAGES, Mode.EVIDENCE}
    assert len(planned.turns(1)) == 2 * 3
    assert len(planned.accounted_turns(1)) == 2 * 2
    assert planned.n_sends == 5 * 100
    assert sum(sends for sends, _ in planned.storms()) == 5 * (100 + 2 * WARMUP)
    without = make_plan(
        replace(traced, probe_costs=False), [RUNNING], traced=True, ours=True, tsc_hz=2e9
    )
    assert without.accounted == without.accounted_turns(1) == ()
    with pytest.raises(UsageError) as raised:
        make_plan(traced, [RUNNING], traced=False, ours=False, tsc_hz=2e9)
    assert "nothing of this guest is traced" in raised.value.message


def test_overcommitted_scenarios_have_few_sends_and_spread_them() -> None:
    asked = replace(REQUEST, count=4000, repeat=2)
    planned = make_plan(asked, [RUNNING, OVERCOMMIT], traced=False, ours=True, tsc_hz=2_596e6)
    sends = {turn.scenario.name: turn.sends for turn in planned.turns(1)}
    assert sends == {"unicast-running": 2000, "unicast-overcommit": 50}
    assert planned.paces["unicast-overcommit"] == 5_200_000  # 2 ms at 2,600 MHz
    assert planned.n_sends == 2 * (2000 + 50)
    assert list(planned.storms()) == [
        *([(2000 + WARMUP, 60_000)] * 2),
        *([(50 + 10, 5_200_000)] * 2),
    ]
    few = make_plan(replace(asked, count=20), [OVERCOMMIT], traced=False, ours=True, tsc_hz=2_596e6)
    assert {turn.sends for turn in few.turns(1)} == {10}
