# SPDX-License-Identifier: Apache-2.0
"""Unit arithmetic and the notation of numbers in printed text."""

KIB = 1024
MIB = 1024 * KIB
NS_PER_S = 1_000_000_000
_TOO_MANY = 100  # from this number on, the next larger unit is used


def cycles_to_ns(cycles: float, tsc_hz: float) -> float:
    """Convert TSC cycles to nanoseconds at `tsc_hz` cycles per second (tsc_hz > 0)."""
    return cycles * NS_PER_S / tsc_hz


def ns_to_cycles(ns: float, tsc_hz: float) -> int:
    """Convert nanoseconds to whole TSC cycles at `tsc_hz` cycles per second."""
    return round(ns * tsc_hz / NS_PER_S)


def spell_time(seconds: float) -> str:
    """A waiting time: "40 s", "12 min", "1.5 h"."""
    if seconds < _TOO_MANY:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < _TOO_MANY else f"{minutes / 60:.1f} h"


def processes(n: int) -> str:
    """The number `n` with the noun "process" or "processes"."""
    return f"{n} process" if n == 1 else f"{n} processes"
