# SPDX-License-Identifier: Apache-2.0
"""Whether what a process uses stays flat."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from scipy.stats import theilslopes

from ipitrace.base.units import MIB

CONFIDENCE = 0.95
_LEAST_GROWTH_BYTES = MIB
"""Over all that was looked at; less is what an allocator's arenas come and go by."""
_FEWEST = 5


@dataclass(frozen=True)
class Usage:
    """What a process has at one moment. All but `rss_bytes` must be the same whenever it rests."""

    rss_bytes: int
    descriptors: int
    threads: int
    children: int
    bpf_objects: int
    mounts: int
    temporary_files: int


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


def judge_usage(
    who: str, warm_s: float, times_s: Sequence[float], rests: Sequence[Usage]
) -> list[str]:
    """What is more at the last rest than at the first one after `warm_s`; and its memory."""
    warm = [usage for at, usage in zip(times_s, rests, strict=True) if at >= warm_s]
    if not warm:
        return ["too short: nothing was looked at after the warm-up"]
    first, last = (replace(usage, rss_bytes=0) for usage in (warm[0], warm[-1]))
    wrong = [
        f"{who} has {value} {name}, and had {getattr(first, name)} after the warm-up"
        for name, value in asdict(last).items()
        if value > getattr(first, name)
    ]
    return wrong + judge_memory(who, warm_s, times_s, [usage.rss_bytes for usage in rests])


def judge_memory(
    who: str, warm_s: float, times_s: Sequence[float], sizes: Sequence[int]
) -> list[str]:
    """Whether it grows after `warm_s`; the slope is printed."""
    warm = [(at, size) for at, size in zip(times_s, sizes, strict=True) if at >= warm_s]
    found = slope([at for at, _size in warm], [size for _at, size in warm])
    if found is None:
        print(f"memory of {who}: too few samples ({len(warm)}) to tell a slope")
        return []
    print(f"memory of {who}: {warm[-1][1] / MIB:.1f} MiB, {found}, {len(warm)} samples")
    return [f"memory of {who} grows: {found}"] if found.grows else []
