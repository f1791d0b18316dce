# SPDX-License-Identifier: Apache-2.0
"""Whether what a process uses stays flat."""

from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import theilslopes

from ipitrace.units import MIB

CONFIDENCE = 0.95
_LEAST_GROWTH_BYTES = MIB
"""Over all that was looked at; less is what an allocator's arenas come and go by."""
_FEWEST = 5


@dataclass(frozen=True)
class Slope:
    """Growth by Theil and Sen, the median of all pairs' slopes, which no single step moves.

    The interval takes the samples as independent, which they are not quite: it is rather too
    narrow. So growth counts only where it adds up to something, too.
    """

    per_hour: float
    low_per_hour: float
    high_per_hour: float
    over_all: float
    """The least growth from the first sample to the last that the interval allows."""

    @property
    def grows(self) -> bool:
        return self.low_per_hour > 0 and self.over_all > _LEAST_GROWTH_BYTES

    def __str__(self) -> str:
        low, mid, high = (
            value / MIB for value in (self.low_per_hour, self.per_hour, self.high_per_hour)
        )
        return f"{mid:+.2f} MiB/h (95 %: {low:+.2f} to {high:+.2f})"


def slope(times_s: Sequence[float], sizes: Sequence[int]) -> Slope | None:
    """How fast it grows; None where there are too few samples to tell."""
    if len(sizes) < _FEWEST:
        return None
    mid, _at, low, high = theilslopes(sizes, times_s, CONFIDENCE)
    hour_s = 3600.0
    return Slope(mid * hour_s, low * hour_s, high * hour_s, low * (times_s[-1] - times_s[0]))
