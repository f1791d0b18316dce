# SPDX-License-Identifier: Apache-2.0
"""The kernel's account of a run's BPF programs, as run.json has it."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """The median of some repetitions' values, the least and the most of them."""

    median: float
    least: float
    most: float


@dataclass(frozen=True)
class ProgramCost:
    """One BPF program in one scenario and mode.

    Attributes:
        runs_per_ipi: runs by any thread of the host; the median of the repetitions.
        ns_per_run: of the repetitions in which it ran.
        ns_per_ipi: of all repetitions.
    """

    runs_per_ipi: float
    ns_per_run: Spread
    ns_per_ipi: Spread


@dataclass(frozen=True)
class ModeCosts:
    """All BPF programs in one scenario and mode.

    Attributes:
        ns_per_ipi: of all programs together.
        programs: the event of each program that ran, to its cost.
    """

    ns_per_ipi: Spread
    programs: Mapping[str, ProgramCost]


@dataclass(frozen=True)
class ProgramCosts:
    """The kernel's account of the BPF programs, from repetitions that are in no other figure.

    Attributes:
        method: what was accounted, and when.
        repetitions: of each scenario in each mode.
        own_ns: the part of each run's time that the kernel also accounts for a program that only
            returns: the accounting itself.
        costs: scenario name to mode to costs.
    """

    method: str
    repetitions: int
    own_ns: float
    costs: Mapping[str, Mapping[str, ModeCosts]]
