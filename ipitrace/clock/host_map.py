# SPDX-License-Identifier: Apache-2.0
"""Map CLOCK_MONOTONIC stamps to the host TSC by a run's clock readings, with an error bound.

docs/clock.md derives the bound.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ipitrace.base.errors import MeasurementError
from ipitrace.clock.sandwich import Sandwich

_TOO_WIDE = 2.0
_SPACING_NS = 10_000_000
_SPACINGS = 8  # the least number of spacings in a short run
_SLEW_RANGE = 2 * 500e-6  # +-MAXFREQ, include/linux/timex.h: the range of NTP's corrections
_ROUNDING_CYCLES = 1.5  # readings are truncated to whole cycles, and the result is rounded
_PPM = 1e6

_RESOLUTION_NS = {"hpet": 100, "acpi_pm": 280, "jiffies": 10_000_000, "refined-jiffies": 10_000_000}


def stamp_resolution_ns(clocksource: str | None) -> int:
    """The step in which CLOCK_MONOTONIC advances, by the kernel's name of the clocksource.

    Clocks that are read from the TSC (tsc, kvm-clock, hyperv_clocksource_tsc_page) advance by less
    than 1 ns, the unit of the stamps. HPET: at most 100 ns (IA-PC HPET specification 1.0a,
    2.3.4). ACPI's timer: 3.579545 MHz (ACPI 6.5, 4.8.3.3).
    """
    return _RESOLUTION_NS.get(clocksource or "", 1)


@dataclass(frozen=True)
class Drift:
    """The stability of the two clocks relative to each other.

    Attributes:
        rate_change_ppm: the largest change of rate from one segment to the next.
        noise_ppm: the part of this change that the widths of the readings can explain.
        residual_cycles: each inner reading's distance from the line through its two adjacent
            readings, (used - 2,).
    """

    rate_change_ppm: float
    noise_ppm: float
    residual_cycles: NDArray[np.float64]


@dataclass(frozen=True)
class HostClockMap:
    """A piecewise linear map through the used sandwiches; build() selects them.

    Attributes:
        ts_ns: CLOCK_MONOTONIC at each used sandwich, rising, int64 (used,).
        tsc: host TSC there, rising, int64 (used,).
        half_width_cycles: the largest error of `tsc` there, float64 (used,).
        rejected: the number of sandwiches that were not used because they were interrupted.
        resolution_ns: the step of CLOCK_MONOTONIC.
    """

    ts_ns: NDArray[np.int64]
    tsc: NDArray[np.int64]
    half_width_cycles: NDArray[np.float64]
    rejected: int = 0
    resolution_ns: int = 1

    @classmethod
    def build(cls, sandwiches: Sequence[Sandwich], resolution_ns: int = 1) -> Self:
        """Build the map from a run's sandwiches.

        A sandwich more than twice as wide as the median one contains an interrupt. It is correct
        but imprecise, and is not used. Of sandwiches closer together than 10 ms (an eighth of a
        shorter run) one is used, because the rate over a short distance is imprecise, too. The
        first and the last sandwich are always used.

        Raises:
            MeasurementError: fewer than two are usable, or the TSC went backwards.
        """
        in_order = sorted(sandwiches, key=lambda s: s.ts_ns)
        widest = _TOO_WIDE * float(np.median([s.half_width_cycles for s in in_order] or [0]))
        narrow = [s for s in in_order if s.half_width_cycles <= widest]
        used = _spaced(narrow)
        if len(used) < 2:  # noqa: PLR2004
            raise MeasurementError(
                "The clocks of host and guest cannot be related: "
                f"only {len(used)} readings of both are usable.",
                "Run for longer; host-to-guest stages need at least three readings.",
            )
        if any(b.tsc <= a.tsc for a, b in itertools.pairwise(used)):
            raise MeasurementError(
                "The host's TSC went backwards during the run.",
                "Check whether the kernel trusts the TSC: dmesg | grep -i tsc.",
            )
        return cls(
            np.array([s.ts_ns for s in used], np.int64),
            np.array([s.tsc for s in used], np.int64),
            # Rounded up to a whole cycle: Sandwich.tsc is the middle, rounded down.
            np.array([math.ceil(s.half_width_cycles) for s in used], np.float64),
            len(in_order) - len(narrow),
            resolution_ns,
        )

    @property
    def cycles_per_ns(self) -> float:
        """The mean rate over the whole map."""
        return float(self.tsc[-1] - self.tsc[0]) / float(self.ts_ns[-1] - self.ts_ns[0])

    @property
    def max_half_width_cycles(self) -> float:
        """The half width of the widest used sandwich, in cycles."""
        return float(self.half_width_cycles.max())

    @property
    def max_half_width_ns(self) -> float:
        """The half width of the widest used sandwich, in ns."""
        return self.max_half_width_cycles / self.cycles_per_ns

    def to_tsc(self, ts_ns: ArrayLike) -> NDArray[np.int64]:
        """The host TSC at CLOCK_MONOTONIC `ts_ns`; any shape, never decreasing.

        Outside the map the lines of the first and the last segment continue; see extrapolated().
        """
        stamps = _stamps(ts_ns)
        at = self._segment(stamps)
        # A double has 53 bits. Distances inside a segment fit; absolute values do not.
        cycles = (stamps - self.ts_ns[at]) * self._rates()[at]
        return self.tsc[at] + np.rint(cycles).astype(np.int64)

    def extrapolated(self, ts_ns: ArrayLike) -> NDArray[np.bool_]:
        """Which stamps are before the first or after the last used sandwich."""
        stamps = _stamps(ts_ns)
        outside: NDArray[np.bool_] = (stamps < self.ts_ns[0]) | (stamps > self.ts_ns[-1])
        return outside

    def bound_cycles(self, ts_ns: ArrayLike) -> NDArray[np.float64]:
        """The largest error of to_tsc(ts_ns)."""
        stamps = _stamps(ts_ns)
        at = self._segment(stamps)
        length = np.diff(self.ts_ns)[at]
        into = np.clip(stamps - self.ts_ns[at], 0, length)
        beyond = np.abs(stamps - self.ts_ns[at] - into)
        share = into / length
        left, right = self.half_width_cycles[at], self.half_width_cycles[at + 1]
        step = self.resolution_ns * self._rates()[at]
        rate_range = self._rate_ranges()[at]
        ends = (1 - share) * left + share * right
        bend = rate_range * into * (1 - share)
        slope = (left + right + step) / length + rate_range
        bound: NDArray[np.float64] = ends + bend + beyond * slope + step + _ROUNDING_CYCLES
        return bound

    def drift(self) -> Drift:
        """The stability of the clocks according to the sandwiches; zeros for fewer than three."""
        if len(self.tsc) < 3:  # noqa: PLR2004
            return Drift(0.0, 0.0, np.zeros(0))
        knots = np.arange(len(self.tsc))
        lows, highs = self._rate_interval(knots[:-1], knots[1:])
        rates, errors = (highs + lows) / 2, (highs - lows) / 2
        changes = np.abs(np.diff(rates)) / rates[:-1]
        noise = (errors[:-1] + errors[1:]) / rates[:-1]
        share = np.diff(self.ts_ns)[:-1] / (self.ts_ns[2:] - self.ts_ns[:-2])
        on_line = (self.tsc[2:] - self.tsc[:-2]) * share
        residuals = (self.tsc[1:-1] - self.tsc[:-2]) - on_line
        worst = int(np.argmax(changes))
        return Drift(float(changes[worst]) * _PPM, float(noise[worst]) * _PPM, residuals)

    def _segment(self, stamps: NDArray[np.int64]) -> NDArray[np.int64]:
        after = np.searchsorted(self.ts_ns, stamps, side="right")
        return np.clip(after - 1, 0, len(self.ts_ns) - 2).astype(np.int64)

    def _rates(self) -> NDArray[np.float64]:
        """Each segment's rate in cycles per ns, (used - 1,)."""
        rates: NDArray[np.float64] = np.diff(self.tsc) / np.diff(self.ts_ns)
        return rates

    def _rate_ranges(self) -> NDArray[np.float64]:
        """The range of the rate inside each segment, cycles per ns, (used - 1,).

        The rate is assumed to stay between the rates of the segment itself, of an equally long
        stretch before it, and of one after it, each with the uncertainty of its ends. The lengths
        are equal because the rate over a short stretch is imprecise.
        """
        if len(self.tsc) < 3:  # noqa: PLR2004
            return self._rates() * _SLEW_RANGE
        knots = np.arange(len(self.tsc))
        first, last = knots[:-1], knots[1:]
        length = np.diff(self.ts_ns)
        before = np.searchsorted(self.ts_ns, self.ts_ns[:-1] - length, side="right") - 1
        after = np.searchsorted(self.ts_ns, self.ts_ns[1:] + length, side="left")
        stretches = [
            (first, last),
            (np.clip(before, 0, None), np.maximum(first, 1)),
            (np.minimum(last, knots[-2]), np.clip(after, None, knots[-1])),
        ]
        lows, highs = zip(*(self._rate_interval(*stretch) for stretch in stretches), strict=True)
        ranges: NDArray[np.float64] = np.max(highs, axis=0) - np.min(lows, axis=0)
        return ranges

    def _rate_interval(
        self, start: NDArray[np.int64], end: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The lowest and highest rate between the sandwiches `start` and `end`."""
        length = self.ts_ns[end] - self.ts_ns[start]
        rate = (self.tsc[end] - self.tsc[start]) / length
        widths = self.half_width_cycles[start] + self.half_width_cycles[end]
        error = (widths + self.resolution_ns * rate) / length
        return rate - error, rate + error


def _stamps(ts_ns: ArrayLike) -> NDArray[np.int64]:
    return np.asarray(ts_ns).astype(np.int64)


def _spaced(sandwiches: Sequence[Sandwich]) -> list[Sandwich]:
    """The first and the last sandwich, and the others that keep the minimum distance."""
    if not sandwiches:
        return []
    first, last = sandwiches[0], sandwiches[-1]
    spacing_ns = min(_SPACING_NS, (last.ts_ns - first.ts_ns) // _SPACINGS)
    used = [first]
    for sandwich in sandwiches[1:-1]:
        if min(sandwich.ts_ns - used[-1].ts_ns, last.ts_ns - sandwich.ts_ns) > spacing_ns:
            used.append(sandwich)
    return [*used, last] if last.ts_ns > first.ts_ns else used
