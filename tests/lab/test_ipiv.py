# SPDX-License-Identifier: Apache-2.0
"""IPI virtualization on the emulated Intel host: stock kvm_intel with enable_ipiv=1."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from lab_result import LabResult

from ipitrace.recording.reader import read_run
from lab.common.job import ipitrace_command
from lab.common.rootfs import SUITE
from lab.common.session import Request, run_on
from lab.intel import boot

pytestmark = pytest.mark.lab("ipiv")

BLOCKED, PREEMPTED = "unicast-blocked", "unicast-preempted"
RUNNING, XAPIC, HALTED = "unicast-running", "unicast-running-xapic", "unicast-halted"
UNICAST = (RUNNING, XAPIC, HALTED, PREEMPTED, BLOCKED)
SELF = ("self", "self-xapic")
SHORTHAND = ("broadcast", "broadcast-xapic")
SCENARIOS = (*UNICAST, *SELF, *SHORTHAND)
MANY = (RUNNING, XAPIC, HALTED, "unicast-halted-xapic", BLOCKED, *SELF, *SHORTHAND)
COUNT, MANY_IPIS = 60, 2000
FEW = 0.05  # the emulated host's timer and the ends of a storm add a few exits
ONE = pytest.approx(1, abs=0.005)
VECTOR = 0x40  # of icr_writes.py

Made = tuple[bool, list[int], list[int]]
"""Whether a write exits, and the vectors that it requests from the sender and from the target."""

POSTED: Made = (False, [], [VECTOR])
TO_SELF: Made = (False, [VECTOR], [])
LEFT_TO_KVM: Made = (True, [], [VECTOR])
LEFT_AND_NOT_REQUESTED: Made = (True, [], [])
WRITES: dict[tuple[str, str], Made] = {
    ("fixed", "MSR"): POSTED,
    ("fixed, level assert", "MSR"): POSTED,
    ("to itself by its id", "MSR"): TO_SELF,
    ("SELF_IPI", "MSR"): TO_SELF,
    ("to self by shorthand", "MSR"): (True, [VECTOR], []),
    ("to all by shorthand", "MSR"): (True, [VECTOR], [VECTOR]),
    ("to all others by shorthand", "MSR"): LEFT_TO_KVM,
    ("logical", "MSR"): LEFT_TO_KVM,
    ("lowest priority", "MSR"): LEFT_TO_KVM,
    ("NMI", "MSR"): LEFT_AND_NOT_REQUESTED,
    ("level-triggered", "MSR"): LEFT_TO_KVM,
    ("vector 15", "MSR"): (True, [], [15]),
    ("bit 12", "MSR"): LEFT_TO_KVM,
    ("to a vCPU that does not exist", "MSR"): LEFT_AND_NOT_REQUESTED,
    ("to an id beyond the table", "MSR"): LEFT_AND_NOT_REQUESTED,
    ("to all by destination", "MSR"): (True, [VECTOR], [VECTOR]),
    ("fixed", "memory"): POSTED,
    ("to itself by its id", "memory"): TO_SELF,
    ("to self by shorthand", "memory"): TO_SELF,
    ("to all others by shorthand", "memory"): LEFT_TO_KVM,
    ("logical", "memory"): LEFT_TO_KVM,
    ("vector 15", "memory"): (True, [], [15]),
    ("to a vCPU that does not exist", "memory"): LEFT_AND_NOT_REQUESTED,
    ("to all by destination", "memory"): (True, [VECTOR], [VECTOR]),
}
"""Of each case of icr_writes.py, as the Intel SDM defines it (vol. 3C, 30.1.6, 30.4.3.2, 30.5)."""


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One boot: a traced run, more IPIs without probes, and every kind of ICR write."""
    output = tmp_path_factory.mktemp("ipiv") / "output"
    traced = [word for name in SCENARIOS for word in ("--scenario", name)]
    many = [word for name in MANY for word in ("--scenario", name)]
    options = ["run", "--seed", "1", "--count"]
    writes = Path(boot.__file__).with_name("icr_writes.py").read_text()
    commands = (
        ipitrace_command([*options, str(COUNT), *traced, "-o", "/job/result/recording"]),
        ipitrace_command([*options, str(MANY_IPIS), "--no-trace", *many, "-o", "/job/result/many"]),
        f"{shlex.join(['python3', '-c', writes])} >/job/result/writes.jsonl",
    )
    job = f"{{ set -e; {'; '.join(commands)}; }}"
    run_on(boot.boot, Request(SUITE, job, (boot.ENABLE_IPIV,), output))
    return output


@pytest.fixture(scope="module")
def ipiv(output: Path) -> LabResult:
    """The traced run."""
    return LabResult(output, (output / "stdout.txt").read_text())


def test_kvm_uses_ipi_virtualization(ipiv: LabResult) -> None:
    assert ipiv.run.complete
    assert ipiv.run.untrustworthy == ()
    assert [s.name for s in ipiv.run.scenarios] == list(SCENARIOS)
    assert {s.status for s in ipiv.run.scenarios} == {"measured"}
    fingerprint = ipiv.run.host.fingerprint
    assert fingerprint is not None
    assert fingerprint.kvm_parameters is not None
    assert fingerprint.kvm_parameters["kvm_intel.enable_ipiv"] == "Y"
    assert fingerprint.emulated == "Bochs"


@pytest.mark.parametrize("recording", ["recording", "many"])
def test_no_ipi_is_lost(output: Path, recording: str) -> None:
    run = read_run(output / recording)
    assert run.complete
    for scenario in run.scenarios:
        assert scenario.sent >= (COUNT if recording == "recording" else MANY_IPIS)
        assert scenario.delivered == scenario.sent * scenario.targets
        assert scenario.incomplete == 0


@pytest.mark.parametrize("name", [*UNICAST, *SELF])
def test_a_send_to_one_vcpu_does_not_exit(ipiv: LabResult, name: str) -> None:
    for reason in ("MSR_WRITE", "APIC_WRITE", "APIC_ACCESS", "EPT_MISCONFIG"):
        assert ipiv.exits(name, "sender", reason) == 0
    # While IPIs are far apart, the host's timer comes in between.
    own = ipiv.exits(name, "sender", "EXTERNAL_INTERRUPT")
    assert ipiv.exits(name, "sender", "exits") - own < FEW
    assert ipiv.scenario(name).paths == {"exitless": 1.0}


@pytest.mark.parametrize("name", SHORTHAND)
def test_a_shorthand_is_left_to_kvm(ipiv: LabResult, name: str) -> None:
    """After the CPU's own write of the register, also for the MSR."""
    assert ipiv.exits(name, "sender", "APIC_WRITE") == ONE
    assert ipiv.exits(name, "sender", "MSR_WRITE") == 0
    assert ipiv.scenario(name).paths == {"apic-write": 1.0}


@pytest.mark.parametrize("name", [RUNNING, XAPIC])
def test_a_target_that_runs_never_exits(ipiv: LabResult, name: str) -> None:
    assert ipiv.exits(name, "target", "exits") < FEW


@pytest.mark.parametrize("name", [HALTED, BLOCKED])
def test_a_target_in_hlt_exits_once_to_halt(ipiv: LabResult, name: str) -> None:
    assert ipiv.exits(name, "target", "HLT") == pytest.approx(1, abs=0.02)


def test_a_blocked_target_is_woken_by_the_wakeup_vector(ipiv: LabResult) -> None:
    """NV of its descriptor is then another one."""
    scenario = ipiv.scenario(BLOCKED)
    assert scenario.late_posts is not None
    assert scenario.late_posts["PIW"] >= scenario.sent / 2


def test_a_preempted_target_is_not_notified(ipiv: LabResult) -> None:
    """SN of its descriptor is set."""
    scenario = ipiv.scenario(PREEMPTED)
    assert scenario.late_posts is not None
    assert scenario.late_posts["PIN"] < scenario.sent / 2


@pytest.fixture(scope="module")
def writes(output: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """What icr_writes.py told of each case."""
    lines = (output / "writes.jsonl").read_text().splitlines()
    return {(told["case"], told["by"]): told for told in map(json.loads, lines)}


@pytest.mark.parametrize("case", list(WRITES), ids=", by ".join)
def test_only_what_can_be_posted_is_not_left_to_kvm(
    writes: dict[tuple[str, str], dict[str, Any]], case: tuple[str, str]
) -> None:
    exits, own, others = WRITES[case]
    told = writes[case]
    assert told["ended"] == "IO"
    assert told["exits"].get("APIC_WRITE", 0) == (told["writes"] if exits else 0)
    assert told["exits"].get("MSR_WRITE", 0) == 0
    assert told["requested"] == [own, others]


def test_a_reserved_bit_is_a_fault(writes: dict[tuple[str, str], dict[str, Any]]) -> None:
    told = writes["reserved bit 13", "MSR"]
    assert told["ended"] == "SHUTDOWN"
    assert told["exits"].get("APIC_WRITE", 0) == 0
    assert told["requested"] == [[], []]


def test_no_case_is_left_out(writes: dict[tuple[str, str], dict[str, Any]]) -> None:
    assert writes.keys() == {*WRITES, ("reserved bit 13", "MSR")}


def test_a_vcpu_that_does_not_run_is_not_notified(
    writes: dict[tuple[str, str], dict[str, Any]],
) -> None:
    """SN is set until it runs for the first time."""
    assert writes["fixed", "MSR"]["notifications"] == {}
