# SPDX-License-Identifier: Apache-2.0
"""Reduces the repetitions of one scenario to its row: pure functions."""

from ipitrace.summary.exits import KVM_EXIT_SOURCE, KVM_EXIT_UNSORTED, KVM_STATS_SOURCE
from ipitrace.summary.observer import observer_costs
from ipitrace.summary.rows import summarise_scenario
from ipitrace.summary.storms import (
    Cycles,
    HostSide,
    Measured,
    Repetition,
    reduce_storm,
)
from ipitrace.words.scenarios import (
    SENDER,
    Mode,
)

__all__ = [
    "KVM_EXIT_SOURCE",
    "KVM_EXIT_UNSORTED",
    "KVM_STATS_SOURCE",
    "SENDER",
    "Cycles",
    "HostSide",
    "Measured",
    "Mode",
    "Repetition",
    "observer_costs",
    "reduce_storm",
    "summarise_scenario",
]
