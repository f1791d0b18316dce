# SPDX-License-Identifier: Apache-2.0
"""The map from ns to TSC, against clocks whose truth is known exactly."""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ipitrace.base.errors import MeasurementError
from ipitrace.clock import HostClockMap, Sandwich, stamp_resolution_ns

MS = 1_000_000
HOUR_NS = 3600 * 1000 * MS


@dataclass(frozen=True)
class World:
    """A true TSC at a true time: one rate, and another from `change_ns` on."""

    tsc_at_0: int
    mhz: Fraction
    change_ns: int = 0
    change_ppm: int = 0

    def tsc(self, ns: Fraction) -> Fraction:
        later = max(ns - self.change_ns, Fraction(0)) * Fraction(self.change_ppm, 10**6)
        return self.tsc_at_0 + (ns + later) * self.mhz / 1000

    def sandwich(self, ns: Fraction, half_width: int, place: Fraction) -> Sandwich:
        """Around `ns`; its middle is off by `place` (-1..1) of its half width, then cut."""
        before = int(self.tsc(ns) + place * half_width) - half_width
        return Sandwich(before + half_width, int(ns), float(half_width))


SUB_NS = st.integers(0, 999).map(lambda thousandths: Fraction(thousandths, 1000))


@st.composite
def worlds(draw: st.DrawFn, *, steps: bool = True) -> tuple[World, list[Sandwich]]:
    """A run of 5 to 15 sandwiches at random places inside their widths; NTP may step the rate."""
    gaps, parts, widths, places = zip(
        *draw(
            st.lists(
                st.tuples(
                    st.integers(MS, 2000 * MS),
                    SUB_NS,
                    st.one_of(st.integers(0, 100), st.integers(0, 100_000)),
                    st.integers(-100, 100),
                ),
                min_size=5,
                max_size=15,
            )
        ),
        strict=True,
    )
    starts = (draw(st.integers(0, 10**17)) + np.cumsum(gaps)).tolist()
    world = World(
        draw(st.integers(0, 1 << 61)),
        Fraction(draw(st.integers(600_000, 6_000_000)), 1000),
        draw(st.integers(starts[1], starts[-2])),
        draw(st.integers(-500, 500)) if steps else 0,
    )
    return world, [
        world.sandwich(start + part, width, Fraction(place, 100))
        for start, part, width, place in zip(starts, parts, widths, places, strict=True)
    ]


@given(worlds(steps=False), st.data())
def test_at_a_steady_rate_every_stamp_is_within_its_bound(
    made: tuple[World, list[Sandwich]], data: st.DataObject
) -> None:
    within_bound(*made, data, beyond_ns=10**9)


@given(worlds(), st.data())
def test_when_the_rate_steps_stamps_are_within_their_bound_too(
    made: tuple[World, list[Sandwich]], data: st.DataObject
) -> None:
    world, sandwiches = made
    mapped = HostClockMap.build(sandwiches)
    # Thinning and choosing must leave a whole segment on either side of the step.
    assume(mapped.ts_ns[1] <= world.change_ns <= mapped.ts_ns[-2])
    within_bound(world, sandwiches, data, beyond_ns=0)


def within_bound(
    world: World, sandwiches: list[Sandwich], data: st.DataObject, beyond_ns: int
) -> None:
    mapped = HostClockMap.build(sandwiches)
    first, last = int(mapped.ts_ns[0]), int(mapped.ts_ns[-1])
    moments = st.builds(
        lambda ns, part: ns + part, st.integers(first - beyond_ns, last + beyond_ns), SUB_NS
    )
    for moment in data.draw(st.lists(moments, min_size=1, max_size=10)):
        stamp = moment.numerator // moment.denominator
        error = abs(int(mapped.to_tsc(stamp)) - world.tsc(moment))
        assert error <= float(mapped.bound_cycles(stamp))


@given(worlds(), st.data())
def test_the_map_never_decreases(made: tuple[World, list[Sandwich]], data: st.DataObject) -> None:
    mapped = HostClockMap.build(made[1])
    around = st.sampled_from(mapped.ts_ns.tolist()).flatmap(lambda ns: st.integers(ns - 3, ns + 3))
    anywhere = st.integers(int(mapped.ts_ns[0]), int(mapped.ts_ns[-1]))
    stamps = sorted(data.draw(st.lists(around | anywhere, min_size=2, max_size=50)))
    assert (np.diff(mapped.to_tsc(np.array(stamps, np.uint64))) >= 0).all()


@given(worlds())
def test_it_goes_through_every_sandwich_it_uses(made: tuple[World, list[Sandwich]]) -> None:
    mapped = HostClockMap.build(made[1])
    assert mapped.to_tsc(mapped.ts_ns).tolist() == mapped.tsc.tolist()
    assert not mapped.extrapolated(mapped.ts_ns).any()


def test_over_hours_the_arithmetic_loses_less_than_a_cycle() -> None:
    world = World((1 << 62) + 12345, Fraction(2_596_134, 1000))
    ends = [world.sandwich(Fraction(h * HOUR_NS), 0, Fraction(0)) for h in (0, 5, 10)]
    mapped = HostClockMap.build(ends)
    stamps = np.linspace(0, 10 * HOUR_NS, 10_001).astype(np.int64)
    exact = []
    for stamp in stamps.tolist():
        a, b = (ends[0], ends[1]) if stamp < ends[1].ts_ns else (ends[1], ends[2])
        rate = Fraction(b.tsc - a.tsc, b.ts_ns - a.ts_ns)
        exact.append(round(a.tsc + (stamp - a.ts_ns) * rate))
    assert int(np.abs(mapped.to_tsc(stamps) - np.array(exact)).max()) <= 1


def test_whole_cycles_of_a_tight_sandwich_are_in_the_bound() -> None:
    world = World(0, Fraction(25061, 40))
    mapped = HostClockMap.build(
        [world.sandwich(Fraction(i * MS + 1), 0, Fraction(0)) for i in range(1, 6)]
    )
    moment = Fraction(500029629, 500)
    error = abs(int(mapped.to_tsc(int(moment))) - world.tsc(moment))
    assert 1.1 < error <= float(mapped.bound_cycles(int(moment)))


def steady(n: int, spacing_ns: int = 20 * MS, half_width: int = 50) -> list[Sandwich]:
    world = World(10**15, Fraction(3000))
    return [world.sandwich(Fraction(i * spacing_ns), half_width, Fraction(0)) for i in range(n)]


def test_an_interrupted_sandwich_does_not_poison_the_map() -> None:
    sandwiches = steady(50)
    clean = HostClockMap.build(sandwiches)
    for hit in (0, 25, 49):
        bad = sandwiches[hit]
        poisoned = list(sandwiches)
        poisoned[hit] = Sandwich(bad.tsc + 40_000, bad.ts_ns, 40_050.0)
        mapped = HostClockMap.build(poisoned)
        assert mapped.rejected == 1
        assert mapped.max_half_width_cycles == 50
        stamps = np.arange(0, 49 * 20 * MS, 777_777)
        error = np.abs(mapped.to_tsc(stamps) - clean.to_tsc(stamps))
        assert (error <= mapped.bound_cycles(stamps)).all()
        assert error.max() <= 1


def test_the_bound_is_a_few_half_widths_inside_and_grows_outside() -> None:
    mapped = HostClockMap.build(steady(50))
    last = int(mapped.ts_ns[-1])
    inside = mapped.bound_cycles(np.arange(0, last, 99_999))
    assert inside.min() >= 50 + 3
    assert inside.max() <= 4 * 50 + 6
    near, far = mapped.bound_cycles([last + 10 * MS, last + 1000 * MS])
    assert inside.max() < near < far
    assert mapped.extrapolated([-1, 0, last, last + 1]).tolist() == [True, False, False, True]


def test_with_one_segment_the_rate_is_not_known_to_be_steady() -> None:
    two = HostClockMap.build(steady(2, spacing_ns=1000 * MS))
    three = HostClockMap.build(steady(3, spacing_ns=500 * MS))
    middle = 600 * MS
    assert two.bound_cycles(middle) > 500_000  # 1000 ppm of a second, a quarter of it
    assert three.bound_cycles(middle) < 300
    assert two.drift().rate_change_ppm == 0


def test_a_coarse_clocksource_widens_the_bound() -> None:
    fine, coarse = HostClockMap.build(steady(9)), HostClockMap.build(steady(9), 280)
    widened = coarse.bound_cycles(30 * MS) - fine.bound_cycles(30 * MS)
    assert widened >= 279 * 3
    assert [stamp_resolution_ns(c) for c in ("tsc", "kvm-clock", None, "acpi_pm")] == [1, 1, 1, 280]


def test_drift_shows_a_step_of_the_rate() -> None:
    world = World(10**15, Fraction(3000), 500 * MS, 40)
    stepped = [world.sandwich(Fraction(i * 20 * MS), 50, Fraction(0)) for i in range(50)]
    drift = HostClockMap.build(stepped).drift()
    assert drift.rate_change_ppm == pytest.approx(40, abs=drift.noise_ppm)
    # The line through the neighbours cuts the corner: half of 20 ms of 40 ppm of 3 GHz.
    assert np.abs(drift.residual_cycles).max() == pytest.approx(1200, abs=3)
    assert len(drift.residual_cycles) == 48
    quiet = HostClockMap.build(steady(50)).drift()
    assert quiet.rate_change_ppm < quiet.noise_ppm
    assert np.abs(quiet.residual_cycles).max() <= 3


def test_sandwiches_close_together_are_thinned() -> None:
    often = HostClockMap.build(steady(1000, spacing_ns=MS))
    assert len(often.ts_ns) == 1 + 999 // 11 + 1 - 1
    assert (np.diff(often.ts_ns) >= 10 * MS).all()
    assert often.ts_ns[-1] == 999 * MS
    brief = HostClockMap.build(steady(100, spacing_ns=1000))
    assert 4 <= len(brief.ts_ns) <= 10


def test_ends_come_from_the_first_and_last_usable_sandwich() -> None:
    mapped = HostClockMap.build(steady(7))
    assert mapped.ts_ns.tolist() == [i * 20 * MS for i in range(7)]
    assert mapped.cycles_per_ns == pytest.approx(3)
    assert mapped.max_half_width_ns == pytest.approx(50 / 3)


@pytest.mark.parametrize("sandwiches", [[], steady(1), steady(1) * 2])
def test_too_few_readings(sandwiches: list[Sandwich]) -> None:
    with pytest.raises(MeasurementError, match="readings of both are usable"):
        HostClockMap.build(sandwiches)


def test_a_tsc_that_went_backwards() -> None:
    bad = [*steady(3), Sandwich(5, 100 * MS, 50.0)]
    with pytest.raises(MeasurementError, match="backwards"):
        HostClockMap.build(bad)
