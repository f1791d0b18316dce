# SPDX-License-Identifier: Apache-2.0
import json

from checks import assert_sound
from runs import made_run, measured_row, unsupported_row

from ipitrace.result import Losses, RunResult


def test_a_run_survives_its_way_to_json_and_back() -> None:
    run = made_run(scenarios=(measured_row(), measured_row("self"), unsupported_row()))
    read = json.loads(run.to_json())
    assert_sound(read)
    again = RunResult.from_dict(read)
    assert again.to_json() == run.to_json()
    assert again.scenarios[0].send_cycles == run.scenarios[0].send_cycles


def test_lost_events_are_those_of_rings_and_of_programs_skipped() -> None:
    losses = Losses(100, {"kvm_exit": 3}, {"kvm_exit": 2, "kvm_eoi": None}, 7, 1)
    assert losses.events_lost == 5
