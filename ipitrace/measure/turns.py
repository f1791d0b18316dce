# SPDX-License-Identifier: Apache-2.0
"""The order of a run's repetitions: shuffled by a seed, and mirrored."""

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
    """Every scenario in every mode once in each block; one block for each number of `sends`.

    In a block, the modes of one scenario follow each other. Their order alternates between
    forwards and backwards, so probes are attached and detached once for two scenarios. Every
    second block has the scenarios in a new shuffled order, and the block after it is its exact
    mirror: a steady drift of the host affects all scenarios and modes equally.
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
    """`count` divided into at most `parts` parts, none of them 0; they differ by 1 at most."""
    parts = min(parts, count)
    return tuple(count // parts + (i < count % parts) for i in range(parts))
