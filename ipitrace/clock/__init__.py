# SPDX-License-Identifier: Apache-2.0
"""Common time base: clock readings, host time stamps to host TSC, host TSC to guest TSC."""

from ipitrace.clock.causality import count_violations
from ipitrace.clock.guest_tsc import GuestTsc, Span, offset_changes, own_guest_tsc
from ipitrace.clock.host_map import Drift, HostClockMap, stamp_resolution_ns
from ipitrace.clock.sandwich import (
    SANDWICH_LISTING,
    Clock,
    Sandwich,
    TscFrequency,
    measure_frequency,
    tsc_went_backwards,
)

__all__ = [
    "SANDWICH_LISTING",
    "Clock",
    "Drift",
    "GuestTsc",
    "HostClockMap",
    "Sandwich",
    "Span",
    "TscFrequency",
    "count_violations",
    "measure_frequency",
    "offset_changes",
    "own_guest_tsc",
    "stamp_resolution_ns",
    "tsc_went_backwards",
]
