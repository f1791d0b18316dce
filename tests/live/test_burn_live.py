# SPDX-License-Identifier: Apache-2.0
"""Handlers of the built-in guest burn what they are told to, as far as repetitions can show it.

tests/lab/test_burn.py has the same to half a percent, where a cycle is an instruction.
"""

import numpy as np
import pytest

from ipitrace.compare.statistics import Estimate, median_interval
from ipitrace.host.cpus import allowed_cpus, choose_cpus, read_topology
from ipitrace.storm.driver import Hooks, Storm, StormRequest
from ipitrace.storm.micro.driver import MicroGuest
from ipitrace.words.scenarios import Scenario, select_scenarios

pytestmark = pytest.mark.live("kvm")

BURNT = 200_000
WITHIN = 0.05
FEWEST, MOST = 8, 48  # pairs of storms; more only where the machine is too noisy for the fewest


def medians(guest: MicroGuest, scenario: Scenario, burn: int) -> tuple[float, float, float]:
    """The medians of S, D and R of one storm, in cycles."""
    request = StormRequest(scenario, 2, 200, 20, 60_000, 20.0, handler_burn_cycles=burn)
    storm = guest.run(request, Hooks())
    (target,) = guest.targets(scenario)
    send = stamps(storm, "send_tsc")
    handler = storm.receipts[target]["handler_tsc"].astype(np.int64)
    ends = (stamps(storm, "sent_tsc"), handler, stamps(storm, "ack_tsc"))
    s, d, r = (float(np.median(end - send)) for end in ends)
    return s, d, r


def stamps(storm: Storm, name: str) -> np.ndarray:
    return np.asarray(storm.sends[name].astype(np.int64))


def is_shown(moved: Estimate, wanted: float, slack: float) -> bool:
    """The whole interval lies within `slack` of `wanted`."""
    assert moved.low is not None
    assert moved.high is not None
    return wanted - slack <= moved.low <= moved.high <= wanted + slack


@pytest.mark.parametrize("name", ["unicast-running", "self"])
def test_burnt_cycles_move_r_by_as_many_and_d_by_none(name: str) -> None:
    """Storms with and without take turns; each pair is one difference.

    S is compared where the handler does not run within the send.
    """
    guest = MicroGuest.prepare(2, choose_cpus(2, allowed_cpus(), read_topology()).cpus)
    (scenario,) = select_scenarios([name])
    plain: list[tuple[float, float, float]] = []
    slow: list[tuple[float, float, float]] = []
    for i in range(MOST):
        for burn in (0, BURNT) if i % 2 == 0 else (BURNT, 0):
            (slow if burn else plain).append(medians(guest, scenario, burn))
        if len(plain) < FEWEST:
            continue
        s, d, r = map(median_interval, (np.array(slow) - np.array(plain)).T)
        slack = WITHIN * BURNT
        shown = is_shown(r, BURNT, slack) and is_shown(d, 0, slack)
        if shown and (name == "self" or is_shown(s, 0, slack)):
            return
    pytest.fail(f"after {MOST} pairs: R moved by {r}, D by {d}, S by {s}")
