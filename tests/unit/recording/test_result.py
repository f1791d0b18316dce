# SPDX-License-Identifier: Apache-2.0
import json
from dataclasses import replace

from checks import assert_sound
from runs import made_run, measured_row, unsupported_row

from ipitrace.recording.result import (
    Disturbance,
    Losses,
    RunLimits,
    RunResult,
)
from ipitrace.render.run.tables import render_run


def test_a_run_survives_its_way_to_json_and_back() -> None:
    run = made_run(scenarios=(measured_row(), measured_row("self"), unsupported_row()))
    read = json.loads(run.to_json())
    assert_sound(read)
    again = RunResult.from_dict(read)
    assert again.to_json() == run.to_json()
    assert again.scenarios[0].send_cycles == run.scenarios[0].send_cycles


def test_the_modules_former_name_is_read_and_shown_where_a_recording_has_it() -> None:
    old = made_run(
        complete=False,
        failure="The guest's ipistorm says: ipistorm: CPU 1 went offline during the storm",
        guest={
            "kind": "linux",
            "n_vcpus": 2,
            "pinned_cpus": None,
            "via": "ssh",
            "kernel": "6.12.0",
            "emulated": None,
            "apic_mode": "x2apic",
            "apic_ids": [0, 1],
            "module_version": "1.0",
            "module_srcversion": "0" * 24,
            "helper_version": "1.0",
            "vm": None,
        },
        scenarios=(measured_row(), replace(unsupported_row(), reason="ipistorm does not do it")),
    )
    read = json.loads(old.to_json())
    assert_sound(read)
    again = RunResult.from_dict(read)
    assert again == RunResult.from_dict(old.to_dict())
    shown = " ".join(render_run(again).split())
    assert "ipistorm does not do it" in shown
    assert "The guest's ipistorm says: ipistorm: CPU 1 went offline" in shown


def test_what_later_programs_look_for_is_kept_apart_from_what_nobody_looked_for() -> None:
    old = made_run()
    assert not {"disturbances", "limits"} & old.to_dict().keys()
    assert RunResult.from_dict(old.to_dict()) == old
    seen = Disturbance("waited", "vCPU 0 waited", worthless=False, share=0.5)
    limits = RunLimits(10_000.0, None, by_default=True)
    for disturbances in ((), (seen, placed_at(seen))):
        new = made_run(disturbances=disturbances, limits=limits)
        read = json.loads(new.to_json())
        assert_sound(read)
        assert len(read["disturbances"]) == len(disturbances)
        assert RunResult.from_dict(read) == RunResult.from_dict(json.loads(new.to_json()))
        assert RunResult.from_dict(read).to_json() == new.to_json()


def placed_at(disturbance: Disturbance) -> Disturbance:
    return replace(disturbance, scenario="self", repetition=3, mode="full")


def test_lost_events_are_those_of_rings_and_of_programs_skipped() -> None:
    losses = Losses(100, {"kvm_exit": 3}, {"kvm_exit": 2, "kvm_eoi": None}, 7, 1)
    assert losses.events_lost == 5
