# SPDX-License-Identifier: Apache-2.0
import json
from dataclasses import replace
from pathlib import Path

import pytest
from checks import assert_sound
from runs import made_program_costs, made_run, measured_row, unsupported_row

from ipitrace.recording.guest import VmResult, linux_guest
from ipitrace.recording.result import Disturbance, Losses, RunLimits, RunResult
from ipitrace.render.run.tables import render_run

RECORDINGS = Path(__file__).parents[2] / "data/recordings"


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


def test_an_account_of_programs_is_a_key_that_only_runs_with_it_have() -> None:
    assert "program_costs" not in made_run().to_dict()
    new = made_run(program_costs=made_program_costs())
    read = json.loads(new.to_json())
    assert_sound(read)
    again = RunResult.from_dict(read)
    assert again.program_costs == new.program_costs
    assert again.to_json() == new.to_json()


def placed_at(disturbance: Disturbance) -> Disturbance:
    return replace(disturbance, scenario="self", repetition=3, mode="full")


def test_lost_events_are_those_of_rings_and_of_programs_skipped() -> None:
    losses = Losses(100, {"kvm_exit": 3}, {"kvm_exit": 2, "kvm_eoi": None}, 7, 1)
    assert losses.events_lost == 5


@pytest.mark.parametrize("path", sorted(RECORDINGS.glob("*/run.json")), ids=lambda p: p.parent.name)
def test_a_recording_is_written_as_it_was_read(path: Path) -> None:
    text = path.read_text()
    assert RunResult.from_dict(json.loads(text)).to_json() == text


def test_keys_of_other_versions_stay_and_absent_ones_stay_absent() -> None:
    """In the host, in the guest, and in what is inside of them."""
    plain = json.loads(made_run().to_json())
    plain["host"]["fingerprint"] = {"smt": None, "colour": ["green"], "other": 3, "absent": {}}
    plain["host"]["neighbours"] = {"kvm_processes": [{"pid": 7, "name": "a", "uid": 5}]}
    plain["host"]["weather"] = {"sun": True}
    plain["guest"] = {"kind": "unheard-of", "n_vcpus": 2, "vm": {"name": "a", "vmm": "b", "c": 1}}
    run = RunResult.from_dict(plain)
    assert json.loads(run.to_json()) == plain
    assert run.host.fingerprint is not None
    assert run.host.fingerprint.cpu_model is None
    assert not run.host.fingerprint.has("cpu_model")
    assert run.host.fingerprint.has("smt")
    assert run.guest.pinned_cpus is None
    assert RunResult.from_dict(json.loads(run.to_json())) == run
    for key in ("fingerprint", "neighbours"):
        del plain["host"][key]
        assert json.loads(RunResult.from_dict(plain).to_json()) == plain
        plain["host"][key] = None
        assert json.loads(RunResult.from_dict(plain).to_json()) == plain


def test_each_kind_of_guest_has_its_own_keys() -> None:
    linux = linux_guest(
        native=False,
        n_vcpus=2,
        pinned_cpus=None,
        via="ssh",
        kernel="6.12.9",
        emulated=None,
        apic_mode="x2apic",
        module_version=None,
        module_srcversion=None,
        helper_version="0.1.0",
        apic_ids=(0, 1),
        vm=VmResult("guest1", "QEMU", 7),
    )
    for guest in (linux, replace(linux, kind="native", vm=None)):
        read = json.loads(made_run(guest=guest).to_json())
        assert_sound(read)
        assert "payload_sha256" not in read["guest"]
        assert read["guest"]["emulated"] is None
    assert list(made_run().to_dict()["guest"]) == [
        *("kind", "n_vcpus", "pinned_cpus", "payload_sha256")
    ]
