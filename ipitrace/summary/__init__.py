# SPDX-License-Identifier: Apache-2.0
"""Reduces the repetitions of one scenario to its row: pure functions."""

from ipitrace.summary.observer import observer_costs
from ipitrace.summary.rows import summarise_scenario
from ipitrace.summary.storms import HostSide, Measured, Repetition, Waited, reduce_storm

__all__ = [
    "HostSide",
    "Measured",
    "Repetition",
    "Waited",
    "observer_costs",
    "reduce_storm",
    "summarise_scenario",
]
