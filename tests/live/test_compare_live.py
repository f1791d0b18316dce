# SPDX-License-Identifier: Apache-2.0
"""Repetitions of real storms, and handlers that are slow on purpose, compared."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checks import assert_sound
from commands import ipi

from ipitrace.host.cpus import allowed_cpus, choose_cpus, read_topology
from ipitrace.storm.driver import Hooks, StormRequest
from ipitrace.storm.micro.driver import MicroGuest
from ipitrace.words.scenarios import select_scenarios

pytestmark = pytest.mark.live("kvm")


def run_json(*words: object, cwd: Path) -> dict[str, Any]:
    done = ipi("run", "--no-trace", *words, "--json", "-o", "here", "--force", cwd=cwd)
    assert done.returncode == 0, done.stderr
    run: dict[str, Any] = json.loads(done.stdout)
    assert_sound(run)
    return run


def test_repeat_decides_how_many_fresh_guests(tmp_path: Path) -> None:
    words = ("--scenario", "self", "--scenario", "unicast-halted", "--count", 70, "--repeat", 7)
    run = run_json(*words, "--seed", 11, cwd=tmp_path)
    assert run["seed"] == 11
    orders = []
    for row in run["scenarios"]:
        figures = row["repetition_figures"]
        assert [f["sent"] for f in figures] == [10] * 7
        assert row["repetitions"] == 7
        assert row["warmup"] > 0
        orders += [f["order"] for f in figures]
        for f in figures:
            for kind in ("send", "deliver", "round_trip"):
                values = [f[f"{kind}_cycles"][p] for p in ("p50", "p90", "p99", "p999")]
                assert values == sorted(values)
    assert sorted(orders) == list(range(14))
    assert orders != sorted(orders), "the scenarios take turns"
    again = run_json(*words, "--seed", 11, cwd=tmp_path)
    assert [f["order"] for row in again["scenarios"] for f in row["repetition_figures"]] == orders


@pytest.mark.parametrize("name", ["unicast-running", "self"])
def test_a_handler_burns_what_it_is_told_to_and_after_its_stamp(name: str) -> None:
    guest = MicroGuest.prepare(2, choose_cpus(2, allowed_cpus(), read_topology()).cpus)
    (scenario,) = select_scenarios([name])
    burnt_cycles = 1_000_000

    def after_the_stamp(burn: int) -> tuple[int, int]:
        """The least D, and the least time from the stamp to the acknowledgement."""
        storm = guest.run(
            StormRequest(scenario, 2, 60, 10, 60_000, 20.0, handler_burn_cycles=burn), Hooks()
        )
        (target,) = guest.targets(scenario)
        send, ack = (storm.sends[f].astype(np.int64) for f in ("send_tsc", "ack_tsc"))
        handler = storm.receipts[target]["handler_tsc"].astype(np.int64)
        return int((handler - send).min()), int((ack - handler).min())

    # what the host does meanwhile only adds: once undisturbed is enough to tell
    rest = slow_deliver = burnt_cycles
    for _ in range(20):
        rest = min(rest, after_the_stamp(0)[1])
        deliver, slow_rest = after_the_stamp(burnt_cycles)
        assert slow_rest >= burnt_cycles
        slow_deliver = min(slow_deliver, deliver)
        if rest < burnt_cycles and slow_deliver < burnt_cycles:
            break
    assert rest < burnt_cycles
    assert slow_deliver < burnt_cycles
