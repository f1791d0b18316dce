# SPDX-License-Identifier: Apache-2.0
from itertools import groupby, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipitrace.measure.turns import Turn, plan_turns, split
from ipitrace.words.scenarios import Mode

MODES = tuple(Mode)


def plan(n: int, blocks: int, seed: int = 0) -> tuple[Turn[int], ...]:
    return plan_turns(range(n), sends=(1,) * blocks, modes=MODES, seed=seed)


@given(st.integers(1, 6), st.integers(1, 7), st.integers(0, 1 << 32))
def test_every_scenario_runs_in_every_mode_once_a_block(n: int, blocks: int, seed: int) -> None:
    turns = plan(n, blocks, seed)
    assert [turn.block for turn in turns] == sorted(turn.block for turn in turns)
    wanted = {(s, mode, block) for s in range(n) for mode in MODES for block in range(blocks)}
    assert {(turn.scenario, turn.mode, turn.block) for turn in turns} == wanted
    assert len(turns) == len(wanted)


@given(st.integers(1, 6), st.integers(0, 1 << 32))
def test_every_second_block_mirrors_the_one_before(n: int, seed: int) -> None:
    turns = [(turn.scenario, turn.mode) for turn in plan(n, 6, seed)]
    size = n * len(MODES)
    blocks = [turns[i : i + size] for i in range(0, len(turns), size)]
    for first, second in zip(blocks[::2], blocks[1::2], strict=True):
        assert second == first[::-1]


@given(st.integers(1, 6), st.integers(0, 1 << 32))
def test_a_steady_drift_falls_on_all_alike(n: int, seed: int) -> None:
    """The mean place of every scenario and mode over a pair of blocks is the same."""
    places: dict[tuple[int, Mode], list[int]] = {}
    for i, turn in enumerate(plan(n, 4, seed)):
        places.setdefault((turn.scenario, turn.mode), []).append(i)
    assert len({sum(found) for found in places.values()}) == 1


@given(st.integers(1, 6), st.integers(1, 7), st.integers(0, 1 << 32))
def test_probes_are_attached_for_no_fewer_than_two_scenarios(
    n: int, blocks: int, seed: int
) -> None:
    """Modes follow each other in steps, and off comes back to back."""
    order = [list(Mode).index(turn.mode) for turn in plan(n, blocks, seed)]
    assert all(abs(a - b) <= 1 for a, b in pairwise(order))
    offs = [len(list(run)) for mode, run in groupby(order) if mode == 0]
    assert all(length == 2 for length in offs[1:-1])


def test_the_seed_decides_the_order() -> None:
    assert plan(6, 6, 1) == plan(6, 6, 1)
    assert plan(6, 6, 1) != plan(6, 6, 2)
    orders = {
        tuple(t.scenario for t in plan(4, 1, seed) if t.mode == Mode.OFF) for seed in range(99)
    }
    assert len(orders) > 12


@pytest.mark.parametrize(
    ("count", "parts", "wanted"), [(7, 3, (3, 2, 2)), (6, 3, (2, 2, 2)), (2, 6, (1, 1))]
)
def test_sends_are_shared_out(count: int, parts: int, wanted: tuple[int, ...]) -> None:
    assert split(count, parts) == wanted
