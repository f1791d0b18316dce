# SPDX-License-Identifier: Apache-2.0
"""Handlers that burn a known number of cycles, where a cycle is an instruction.

The emulated host's TSC advances by the mean of what its two CPUs execute, a few instructions of
each in turn (bx_begin_simulation() in Bochs' main.cc). Another loop on the target therefore
changes the ticks of the same instructions on the sender by some percent: S and D of burning
handlers are compared with those of burning handlers.
"""

from pathlib import Path
from statistics import median

import pytest

from ipitrace.recording.reader import read_run
from ipitrace.recording.row import ScenarioResult
from lab.common.job import ipitrace_command
from lab.common.rootfs import SUITE
from lab.common.session import Request, run_on
from lab.intel.boot import boot

pytestmark = pytest.mark.lab("burn")

SELF = "self"
TO_ANOTHER = ("unicast-running", "unicast-running-kernel")
BURNT = (0, 1_000, 10_000, 100_000)
EXACT = 0.005
A_TICK = 1

Burnt = dict[int, dict[str, ScenarioResult]]


@pytest.fixture(scope="module")
def burnt(tmp_path_factory: pytest.TempPathFactory) -> Burnt:
    """One run for each number of cycles, in one boot: the rows by cycles and scenario."""
    output = tmp_path_factory.mktemp("burnt") / "output"
    asked = [word for name in (SELF, *TO_ANOTHER) for word in ("--scenario", name)]
    command = "; ".join(
        ipitrace_command(
            [
                *("run", "--no-trace", "-q", "--seed", "1", "--count", "60", *asked),
                *("--burn-cycles", str(cycles), "-o", f"/job/result/{cycles}"),
            ]
        )
        for cycles in BURNT
    )
    run_on(boot, Request(SUITE, f"{{ set -e; {command}; }}", (), output))
    return {cycles: rows_of(output / str(cycles)) for cycles in BURNT}


def rows_of(recording: Path) -> dict[str, ScenarioResult]:
    return {row.name: row for row in read_run(recording).scenarios}


def p50(row: ScenarioResult, metric: str) -> float:
    """The median of the repetitions' medians, in ticks."""
    found = [getattr(figures, f"{metric}_cycles") for figures in row.repetition_figures or ()]
    return median(figures.p50 for figures in found)


@pytest.mark.parametrize("cycles", BURNT[1:])
def test_an_ipi_to_itself_takes_longer_by_what_is_burnt(burnt: Burnt, cycles: int) -> None:
    """The handler interrupts the send: S has all of it, D nothing."""
    base, slow = burnt[0][SELF], burnt[cycles][SELF]
    for metric in ("round_trip", "send"):
        moved = p50(slow, metric) - p50(base, metric)
        assert moved == pytest.approx(cycles, rel=EXACT)
    assert p50(slow, "deliver") == pytest.approx(p50(base, "deliver"), abs=A_TICK)


@pytest.mark.parametrize("cycles", BURNT[2:])
@pytest.mark.parametrize("name", TO_ANOTHER)
def test_r_to_another_vcpu_moves_by_what_is_burnt_and_d_and_s_do_not(
    burnt: Burnt, name: str, cycles: int
) -> None:
    least = BURNT[1]
    base, slow = burnt[least][name], burnt[cycles][name]
    assert p50(base, "deliver") + least > p50(base, "send"), "otherwise R ends with the send"
    moved = p50(slow, "round_trip") - p50(base, "round_trip")
    assert moved == pytest.approx(cycles - least, rel=EXACT)
    assert p50(slow, "deliver") == pytest.approx(p50(base, "deliver"), abs=A_TICK)
    assert p50(slow, "send") == pytest.approx(p50(base, "send"), rel=EXACT)


@pytest.mark.parametrize("cycles", BURNT[1:])
@pytest.mark.parametrize("name", TO_ANOTHER)
def test_d_is_that_of_a_handler_that_burns_nothing(burnt: Burnt, name: str, cycles: int) -> None:
    wanted = p50(burnt[0][name], "deliver")
    assert p50(burnt[cycles][name], "deliver") == pytest.approx(wanted, abs=A_TICK)
