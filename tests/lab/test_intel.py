# SPDX-License-Identifier: Apache-2.0
"""ipitrace on an emulated Intel host: stock kvm_intel with APICv and posted interrupts."""

import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from lab_result import (
    HV_SCENARIOS,
    HV_TO_ALL,
    INTEL_SCENARIOS,
    NO_APICV_SCENARIOS,
    LabResult,
)

from ipitrace.render.run.tables import render_run
from lab.common.image import make_disk
from lab.common.rootfs import SUITE
from lab.common.session import Request, run_on
from lab.common.steps import LabError
from lab.intel.boot import boot

pytestmark = pytest.mark.lab("intel")

SELF, HALTED = "self", "unicast-halted"
RUNNING, KERNEL, MASKED = "unicast-running", "unicast-running-kernel", "unicast-masked"
XAPIC = "unicast-running-xapic"
TO_ANOTHER = tuple(name for name in INTEL_SCENARIOS if name not in {SELF, *HV_SCENARIOS})
NEVER_HALTED = tuple(name for name in TO_ANOTHER if name != HALTED)
REENTER_GUEST = 1  # EXIT_FASTPATH_REENTER_GUEST, arch/x86/include/asm/kvm_host.h
# The emulated host's timer and the ends of a storm add a few exits.
FEW = 0.05
ONE = pytest.approx(1, abs=0.005)


def test_the_run_is_whole_and_says_where_it_was_made(intel: LabResult) -> None:
    assert intel.run.complete
    assert [s.name for s in intel.run.scenarios] == list(INTEL_SCENARIOS)
    assert {s.status for s in intel.run.scenarios} == {"measured"}
    fingerprint = intel.run.host.fingerprint
    assert fingerprint.kvm_backend == "kvm_intel"
    assert fingerprint.kvm_parameters["kvm_intel.enable_apicv"] == "Y"
    assert fingerprint.emulated == "Bochs"
    assert "emulated host: cycles are not real time" in intel.printed


def test_nothing_was_lost(intel: LabResult) -> None:
    assert intel.run.untrustworthy == ()
    assert intel.run.losses.events_lost == 0
    assert intel.run.losses.incomplete_ipis == 0
    for scenario in intel.run.scenarios:
        assert scenario.delivered == scenario.sent * scenario.targets
        assert scenario.unmatched_ipis == 0


def test_host_and_guest_share_one_clock(intel: LabResult) -> None:
    assert intel.run.clock is not None
    assert set(intel.run.clock.causality_violations.values()) == {0}


@pytest.mark.parametrize("name", TO_ANOTHER)
def test_a_send_is_one_exit(intel: LabResult, name: str) -> None:
    by_memory = name == XAPIC
    assert intel.exits(name, "sender", "MSR_WRITE") == (0 if by_memory else ONE)
    # The write of the ICR's upper half stays in the virtual APIC page.
    assert intel.exits(name, "sender", "APIC_WRITE") == (ONE if by_memory else 0)


@pytest.mark.parametrize("name", NEVER_HALTED)
def test_a_target_that_runs_never_exits_for_it(intel: LabResult, name: str) -> None:
    """Neither to take the interrupt, masked or not, nor to end it."""
    for reason in ("MSR_WRITE", "INTERRUPT_WINDOW", "HLT", "APIC_WRITE", "EOI_INDUCED"):
        assert intel.exits(name, "target", reason) == 0
    assert intel.exits(name, "target", "exits") < FEW


def test_a_halted_target_exits_once_to_halt(intel: LabResult) -> None:
    assert intel.exits(HALTED, "target", "HLT") == pytest.approx(1, abs=0.02)
    assert intel.exits(HALTED, "target", "MSR_WRITE") == 0


def test_an_ipi_to_itself_stays_in_the_guest(intel: LabResult) -> None:
    assert intel.exits(SELF, "sender", "MSR_WRITE") == 0
    assert intel.scenario(SELF).paths == {"exitless": 1.0}


@pytest.mark.parametrize("name", TO_ANOTHER)
def test_each_ipi_is_posted(intel: LabResult, name: str) -> None:
    assert intel.events(name, "kvm_apicv_accept_irq").sender == pytest.approx(1)
    assert intel.events(name, "kvm_apic_accept_irq").sender == pytest.approx(1)


@pytest.mark.parametrize("name", TO_ANOTHER)
def test_functions_without_a_tracepoint_are_seen_by_fentry(intel: LabResult, name: str) -> None:
    assert intel.run.observer is not None
    hooks = intel.run.observer.hooks
    assert hooks["vmx_deliver_interrupt"] == "fentry"
    assert hooks["handle_fastpath_set_msr_irqoff"] == "fexit"
    assert intel.events(name, "vmx_deliver_interrupt").sender == pytest.approx(1)


def test_the_arguments_and_results_of_hooked_functions_are_read(intel: LabResult) -> None:
    events = pq.read_table(intel.recording / "host_events.parquet").to_pylist()
    vectors: dict[str, set[int]] = {"vmx_deliver_interrupt": set(), "kvm_apic_accept_irq": set()}
    returned = set()
    for event in events:
        if event["scenario"] != RUNNING:
            continue
        if event["kind"] in vectors:
            vectors[event["kind"]].add(event["detail"])
        elif event["kind"] == "handle_fastpath_set_msr_irqoff":
            returned.add(event["word"])
    assert len(vectors["kvm_apic_accept_irq"]) == 1
    assert vectors["vmx_deliver_interrupt"] == vectors["kvm_apic_accept_irq"]
    assert returned == {REENTER_GUEST}


def test_paths_are_proved(intel: LabResult) -> None:
    for name in (RUNNING, KERNEL, MASKED, HALTED):
        assert intel.scenario(name).paths == {"msr-fastpath": 1.0}
        fast = intel.events(name, "handle_fastpath_set_msr_irqoff")
        assert fast.sender == pytest.approx(1)
    # kvm keeps destination shorthands off the fastpath
    assert intel.scenario("broadcast").paths == {"msr-exit": 1.0}
    assert intel.scenario(XAPIC).paths == {"apic-write": 1.0}


@pytest.mark.parametrize("name", HV_SCENARIOS)
def test_a_hyperv_hypercall_is_one_exit_and_the_path_is_proved(intel: LabResult, name: str) -> None:
    assert intel.scenario(name).paths == {"hv-hypercall": 1.0}
    assert intel.exits(name, "sender", "VMCALL") == ONE
    assert intel.exits(name, "sender", "MSR_WRITE") == 0
    assert intel.exits(name, "target", "MSR_WRITE") == 0
    targets = intel.scenario(name).targets
    assert targets == (2 if name == HV_TO_ALL else 1)
    own = "kvm_hv_send_ipi_ex" if name.endswith("-ex") else "kvm_hv_send_ipi"
    assert intel.events(name, own).sender == pytest.approx(1)
    for event in ("kvm_apic_accept_irq", "kvm_apicv_accept_irq", "vmx_deliver_interrupt"):
        assert intel.events(name, event).sender == pytest.approx(targets)
    assert "kvm_apic_ipi" not in (intel.scenario(name).events_per_ipi or {})


def test_late_posts_are_told(intel: LabResult) -> None:
    for scenario in intel.run.scenarios:
        assert scenario.late_posts is not None
        assert set(scenario.late_posts) == {"PIN", "NPI", "PIW"}
    told = render_run(intel.run, sections=("paths",))
    assert "late posts (PIN, NPI, PIW" in " ".join(told.split())


def test_waiting_in_user_or_in_kernel_mode_makes_no_difference(intel: LabResult) -> None:
    """The payload runs natively in both here; on some KVMs kernel mode is emulated."""
    user, kernel = (intel.scenario(name).deliver_cycles for name in (RUNNING, KERNEL))
    assert user is not None
    assert kernel is not None
    assert kernel.p50 == pytest.approx(user.p50, rel=0.02)


def test_without_apicv_the_end_of_interrupt_exits(no_apicv: LabResult) -> None:
    parameters = no_apicv.run.host.fingerprint.kvm_parameters
    assert parameters["kvm_intel.enable_apicv"] == "N"
    for name in NO_APICV_SCENARIOS:
        assert no_apicv.exits(name, "sender", "MSR_WRITE") == ONE
        assert no_apicv.exits(name, "target", "MSR_WRITE") == pytest.approx(1, abs=0.02)
    # The kick that makes a running target look at its interrupts.
    assert no_apicv.exits(RUNNING, "target", "EXTERNAL_INTERRUPT") == pytest.approx(1, abs=FEW)


def test_without_apicv_a_masked_target_exits_when_it_unmasks(no_apicv: LabResult) -> None:
    assert no_apicv.exits(MASKED, "target", "INTERRUPT_WINDOW") == pytest.approx(1, abs=0.02)
    assert no_apicv.exits(RUNNING, "target", "INTERRUPT_WINDOW") < FEW


def test_without_apicv_nothing_is_posted(no_apicv: LabResult) -> None:
    for name in NO_APICV_SCENARIOS:
        assert no_apicv.events(name, "kvm_apic_accept_irq").sender == pytest.approx(1)
        assert "kvm_apicv_accept_irq" not in (no_apicv.scenario(name).events_per_ipi or {})


def test_the_recording_prints_the_same_outside(intel: LabResult) -> None:
    command = [sys.executable, "-m", "ipitrace", "report", str(intel.recording)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == intel.printed


def test_the_same_run_again_is_the_same_byte_for_byte(once: LabResult, again: LabResult) -> None:
    """Every TSC stamp of the guest, so every event, span, figure and word after it."""
    first, second = (
        {file.relative_to(result.output): file for file in result.output.rglob("*")}
        for result in (once, again)
    )
    assert first.keys() == second.keys()
    assert {Path("recording/guest_ipis.parquet"), Path("recording/spans.parquet")} <= first.keys()
    parted = [
        str(name)
        for name, file in first.items()
        if file.is_file() and file.read_bytes() != second[name].read_bytes()
    ]
    assert parted == []


def test_a_host_that_dies_is_told_and_what_it_left_kept(tmp_path: Path) -> None:
    crash = "{ echo half >/job/result/recording; sync; echo c >/proc/sysrq-trigger; }"
    output = tmp_path / "output"
    with pytest.raises(LabError, match=r"(?s)boot, run, power off .* no resolution"):
        run_on(boot, Request(SUITE, crash, (), output))
    assert "sysrq: Trigger a crash" in (output / "console.log").read_text()
    assert (output / "recording").read_text() == "half\n"


def test_a_disk_is_the_same_each_time_it_is_made(tmp_path: Path) -> None:
    """What goes into the host must not make two runs differ."""
    disks = []
    for name in ("first", "second"):
        tree = tmp_path / name / "tree"
        (tree / "folder").mkdir(parents=True)
        for file in ("run", "folder/module.py"):
            (tree / file).write_text(file)
        disk = tmp_path / name / "job.img"
        make_disk(tree, disk, label="lab-job", mib=16)
        disks.append(disk.read_bytes())
        time.sleep(1.1)  # file systems keep whole seconds
    assert disks[0] == disks[1]
