# SPDX-License-Identifier: Apache-2.0
"""The order in which a run's repetitions happen: shuffled by a seed, and mirrored."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from ipitrace.words.scenarios import Mode

S = TypeVar("S")


@dataclass(frozen=True)
class Turn(Generic[S]):
    """One repetition to run.

    Attributes:
        block: which repetition of its scenario and mode, from 0.
        sends: measured sends.
    """

    scenario: S
    mode: Mode
    block: int
    sends: int


def plan_turns(
    scenarios: Sequence[S], *, sends: Sequence[int], modes: Sequence[Mode], seed: int
) -> tuple[Turn[S], ...]:
    """Every scenario in every mode, once a block; one block for each number of `sends`.

    Within a block a scenario's modes follow each other, forwards and backwards in turn,
    so that probes are attached and detached only once for two scenarios. The scenarios'
    order is shuffled for every second block, and the block after it is its exact mirror:
    a steady drift of the host falls on all scenarios and modes alike.
    """
    shuffler = random.Random(seed)  # noqa: S311 - an order, not a secret
    turns: list[Turn[S]] = []
    sequence: list[tuple[S, Mode]] = []
    for block, count in enumerate(sends):
        if block % 2 == 0:
            order = list(scenarios)
            shuffler.shuffle(order)
            sequence = [
                (scenario, mode)
                for i, scenario in enumerate(order)
                for mode in (modes if i % 2 == 0 else modes[::-1])
            ]
        else:
            sequence.reverse()
        turns += [Turn(scenario, mode, block, count) for scenario, mode in sequence]
    return tuple(turns)


def split(count: int, parts: int) -> tuple[int, ...]:
    """`count` in at most `parts` parts that differ by no more than one, none of them 0."""
    parts = min(parts, count)
    return tuple(count // parts + (i < count % parts) for i in range(parts))
