# SPDX-License-Identifier: Apache-2.0
"""ipitrace on an emulated AMD host: stock kvm_amd, seen by what only bare metal has."""

import subprocess
import sys
from pathlib import Path

import pytest
from lab_result import (
    AMD_SCENARIOS,
    HV_SCENARIOS,
    HV_TO_ALL,
    WATCHED_SCENARIOS,
    LabResult,
    assert_watched,
)

CHECKOUT = Path(__file__).parents[2]

pytestmark = pytest.mark.lab("amd")

XAPIC = "unicast-running-xapic"
BY_MSR = tuple(name for name in AMD_SCENARIOS if name not in {XAPIC, *HV_SCENARIOS})


def test_the_run_is_whole_and_says_where_it_was_made(amd: LabResult) -> None:
    assert amd.run.complete
    assert [s.name for s in amd.run.scenarios] == list(AMD_SCENARIOS)
    assert {s.status for s in amd.run.scenarios} == {"measured"}
    assert amd.run.host.fingerprint.kvm_backend == "kvm_amd"
    assert amd.run.host.fingerprint.emulated == "QEMU TCG"
    assert "emulated host: cycles are not real time" in amd.printed


@pytest.mark.parametrize("name", AMD_SCENARIOS)
def test_exits_and_entries_are_seen_and_belong_together(amd: LabResult, name: str) -> None:
    exits, entries = amd.events(name, "kvm_exit"), amd.events(name, "kvm_entry")
    assert exits.sender >= 1
    # The storm's end leaves one exit without an entry; a start, one entry without an exit.
    assert exits.sender == pytest.approx(entries.sender, abs=0.05)
    assert exits.target == pytest.approx(entries.target, abs=0.05)


@pytest.mark.parametrize("name", BY_MSR)
def test_each_send_is_one_exit_and_so_is_each_end_of_interrupt(amd: LabResult, name: str) -> None:
    # Without AVIC, the writes of the ICR and of the EOI register both exit.
    if name == "self":
        assert amd.exits(name, "sender", "msr") == pytest.approx(2, abs=0.02)
    else:
        assert amd.exits(name, "sender", "msr") == pytest.approx(1, abs=0.02)
        assert amd.exits(name, "target", "msr") == pytest.approx(1, abs=0.02)


def test_through_memory_both_halves_of_a_send_exit(amd: LabResult) -> None:
    assert amd.exits(XAPIC, "sender", "npf") == pytest.approx(2, abs=0.05)
    assert amd.exits(XAPIC, "target", "npf") == pytest.approx(1, abs=0.05)
    assert amd.scenario(XAPIC).paths == {"mmio": 1.0}


@pytest.mark.parametrize("name", HV_SCENARIOS)
def test_a_hyperv_hypercall_is_one_exit_and_the_path_is_proved(amd: LabResult, name: str) -> None:
    assert amd.scenario(name).paths == {"hv-hypercall": 1.0}
    assert amd.exits(name, "sender", "hypercall") == pytest.approx(1, abs=0.02)
    event = "kvm_hv_send_ipi_ex" if name.endswith("-ex") else "kvm_hv_send_ipi"
    assert amd.events(name, event).sender == pytest.approx(1)
    targets = amd.scenario(name).targets
    assert targets == (2 if name == HV_TO_ALL else 1)
    assert amd.events(name, "kvm_apic_accept_irq").sender == pytest.approx(targets)
    assert "kvm_apic_ipi" not in (amd.scenario(name).events_per_ipi or {})


@pytest.mark.parametrize("name", WATCHED_SCENARIOS)
def test_watch_counts_every_ipi_of_a_hyperv_hypercall(amd: LabResult, name: str) -> None:
    assert_watched(amd, name)
    assert amd.watched[name]["visibility"]["complete"] is True


def test_a_masked_target_exits_when_it_unmasks(amd: LabResult) -> None:
    assert amd.exits("unicast-masked", "target", "vintr") == pytest.approx(1, abs=0.02)


def test_a_halted_target_exits_once_to_halt_and_a_running_one_never(amd: LabResult) -> None:
    assert amd.exits("unicast-halted", "target", "hlt") == pytest.approx(1, abs=0.02)
    assert amd.exits("unicast-running", "target", "hlt") == 0


@pytest.mark.parametrize("name", BY_MSR)
def test_every_send_is_proved_to_go_through_the_msr(amd: LabResult, name: str) -> None:
    paths = amd.scenario(name).paths
    assert paths is not None
    assert sum(paths.get(path, 0) for path in ("msr-exit", "msr-fastpath")) == pytest.approx(1)


@pytest.mark.parametrize("name", AMD_SCENARIOS)
def test_no_ipi_is_lost_or_unexplained(amd: LabResult, name: str) -> None:
    scenario = amd.scenario(name)
    assert scenario.delivered == scenario.sent * scenario.targets
    assert scenario.unmatched_ipis == 0


def test_host_and_guest_share_one_clock(amd: LabResult) -> None:
    assert amd.run.clock is not None
    assert set(amd.run.clock.causality_violations.values()) == {0}


def test_the_recording_prints_the_same_outside(amd: LabResult) -> None:
    command = [sys.executable, "-m", "ipitrace", "report", str(amd.recording)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == amd.printed


def test_a_host_that_dies_is_told_and_its_console_kept(tmp_path: Path) -> None:
    options = ["--parameter", "rdinit=/none", "--output", str(tmp_path)]
    command = [sys.executable, "-m", "lab.amd", *options]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, "")
    assert "failed: collect: the host did not complete its job" in done.stderr
    assert "Kernel panic" in (tmp_path / "console.log").read_text()
