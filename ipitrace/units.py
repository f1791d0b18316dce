# SPDX-License-Identifier: Apache-2.0
"""Unit arithmetic and how numbers are spelled for people."""

KIB = 1024
MIB = 1024 * KIB
NS_PER_S = 1_000_000_000


def cycles_to_ns(cycles: float, tsc_hz: float) -> float:
    """Convert TSC cycles to nanoseconds at `tsc_hz` cycles per second (tsc_hz > 0)."""
    return cycles * NS_PER_S / tsc_hz


def ns_to_cycles(ns: float, tsc_hz: float) -> int:
    """Convert nanoseconds to whole TSC cycles at `tsc_hz` cycles per second."""
    return round(ns * tsc_hz / NS_PER_S)


def processes(n: int) -> str:
    """So many of them, in words."""
    return f"{n} process" if n == 1 else f"{n} processes"
