# SPDX-License-Identifier: Apache-2.0
"""What is said of IPIs that leave no trace, of late posts, and of a foreign VM's exits."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binomtest

from ipitrace.host.files import HostFiles
from ipitrace.host.interrupts import parse_interrupts
from ipitrace.watch.evidence import CONFIDENCE, ENOUGH, MOST_SHARE, most_share
from ipitrace.watch.late_posts import late_posts
from ipitrace.watch.mechanisms import MECHANISMS, Facts, Mechanism
from ipitrace.watch.model import MOST_CLAIMS, CpuPosts, Visibility
from ipitrace.watch.roster import cells_for, slots_for
from ipitrace.watch.visibility import hint, visibility
from ipitrace.watch.vm_stats import read_vm_exits
from ipitrace.words.exit_reasons import Isa

HOOKS = frozenset(
    {
        *("kvm_apic_accept_irq", "kvm_apicv_accept_irq", "kvm_hypercall", "kvm_xen_hypercall"),
        *("kvm_hv_send_ipi", "kvm_hv_send_ipi_ex"),
    }
)
INTEL = Facts(
    accepted=ENOUGH,
    hooks=HOOKS,
    isa=Isa.VMX,
    backend="kvm_intel",
    parameters={"kvm_intel.nested": "Y", "kvm_intel.tdx": "N"},
    exit_reasons=frozenset({"HLT", "MSR_WRITE"}),
)
AMD = replace(
    INTEL,
    isa=Isa.SVM,
    backend="kvm_amd",
    parameters={"kvm_amd.nested": "1", "kvm_amd.sev_snp": "N"},
    exit_reasons=frozenset({"hlt", "msr"}),
)
NEITHER = replace(INTEL, isa=0, backend="kvm_other", parameters=None, exit_reasons=None)
"""A KVM that traps and emulates, whose kvm_exit does not fire."""


def judged(accepted: int = 0, taken: int = 0, *, watched: bool = True) -> Visibility:
    hooks = HOOKS if watched else HOOKS - {"kvm_apicv_accept_irq"}
    facts = replace(INTEL, accepted=accepted, taken=taken, hooks=hooks)
    return visibility(facts, "hint, not evidence: x")


@pytest.mark.parametrize(
    ("found", "complete"),
    [
        (judged(), None),
        (judged(1), None),
        (judged(298), None),
        (judged(299), True),
        (judged(10, 1), False),
        (judged(1, 1), False),
        (judged(10_000, 1), False),
        (judged(10, 10), False),
        (judged(1_000, watched=False), None),
    ],
)
def test_evidence_decides(found: Visibility, complete: bool | None) -> None:  # noqa: FBT001
    assert found.complete is complete
    assert ("hint, not evidence" in found.why) == (complete is not True)


UNPROVED: list[tuple[str, Facts, dict[str, Any], bool | None]] = [
    ("self-IPIs with virtual interrupt delivery", INTEL, {"accepted": ENOUGH - 1}, None),
    ("self-IPIs with virtual interrupt delivery", INTEL, {"taken": 1}, False),
    ("Intel's IPI virtualization", INTEL, {"accepted": ENOUGH - 1}, None),
    ("AVIC and x2AVIC", AMD, {"accepted": ENOUGH - 1}, None),
    ("AVIC and x2AVIC", AMD, {"taken": 1}, False),
    ("Passthrough IPI", INTEL, {"hooks": HOOKS - {"kvm_apicv_accept_irq"}}, None),
    ("KVM's hypercall", INTEL, {"hooks": HOOKS - {"kvm_hypercall"}}, None),
    ("Hyper-V's hypercalls", INTEL, {"hooks": HOOKS - {"kvm_hv_send_ipi"}}, None),
    ("Hyper-V's hypercalls", AMD, {"hooks": HOOKS - {"kvm_hv_send_ipi_ex"}}, None),
    ("Xen's event channels", INTEL, {"hooks": HOOKS - {"kvm_xen_hypercall"}}, None),
    ("Xen's event channels", INTEL, {"xen_hypercalls": 1}, False),
    ("a nested guest", INTEL, {"exit_reasons": frozenset({"HLT", "VMRESUME"})}, False),
    ("a nested guest", AMD, {"exit_reasons": frozenset({"vmrun"})}, False),
    ("a nested guest", INTEL, {"exit_reasons": None}, None),
    ("a confidential VM's own APIC", INTEL, {"parameters": {"kvm_intel.tdx": "Y"}}, None),
    ("a confidential VM's own APIC", AMD, {"parameters": {"kvm_amd.sev_snp": "Y"}}, None),
    ("a confidential VM's own APIC", AMD, {"parameters": None}, None),
    ("a confidential VM's own APIC", AMD, {"confidential": True}, None),
    ("an APIC in user space", INTEL, {"accepted": 0}, None),
    ("interrupts by MSI and irqfd", INTEL, {"hooks": HOOKS - {"kvm_apic_accept_irq"}}, None),
    ("a KVM that is not known", INTEL, {"backend": "kvm_other"}, None),
    ("a KVM that is not known", INTEL, {"backend": None}, None),
    ("vCPUs that are not watched", INTEL, {"unwatched": 1}, None),
    ("events that were missed", INTEL, {"missed": 1}, None),
    ("events that were missed", INTEL, {"skipped": 1}, None),
]


@pytest.mark.parametrize("facts", [INTEL, AMD, NEITHER], ids=["intel", "amd", "neither"])
def test_all_excluded_is_complete(facts: Facts) -> None:
    assert visibility(facts, "").complete is True


@pytest.mark.parametrize(("name", "facts", "change", "complete"), UNPROVED)
def test_one_that_is_not_excluded_is_not_complete(
    name: str,
    facts: Facts,
    change: dict[str, Any],
    complete: bool | None,  # noqa: FBT001
) -> None:
    (mechanism,) = (m for m in MECHANISMS if m.name == name)
    assert mechanism.excluded(facts) is True
    assert mechanism.excluded(replace(facts, **change)) is complete
    found = visibility(replace(facts, **change), "")
    assert found.complete is complete
    assert name in found.why or change == {"taken": 1}


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=lambda mechanism: mechanism.name)
def test_each_mechanism_alone_decides(mechanism: Mechanism) -> None:
    for excluded in (None, False):
        others = [m for m in MECHANISMS if m is not mechanism]
        odd = replace(mechanism, excluded=lambda _facts, it=excluded: it)
        found = visibility(INTEL, "", [*others, odd])
        assert found.complete is excluded
        assert mechanism.name in found.why


def test_each_mechanism_is_tried_and_documented() -> None:
    names = [mechanism.name for mechanism in MECHANISMS]
    assert len(set(names)) == len(names)
    assert {name for name, *_ in UNPROVED} == set(names)
    text = (Path(__file__).parents[3] / "docs" / "watch.md").read_text()
    for mechanism in MECHANISMS:
        assert f"| {mechanism.name} | {mechanism.reason} | {mechanism.evidence} |" in text


@pytest.mark.parametrize("n", [1, 2, 10, 298, 299, 300, 10_000, 1_000_000])
def test_the_bound_is_that_of_clopper_and_pearson(n: int) -> None:
    """With a share as large as the bound, n without one are as rare as the confidence says."""
    assert (1 - most_share(n)) ** n == pytest.approx(1 - CONFIDENCE)
    assert most_share(n) == pytest.approx(binomtest(0, n).proportion_ci(0.9).high)
    assert (most_share(n) <= MOST_SHARE) == (n >= ENOUGH)


def test_the_evidence_and_its_bound_are_told() -> None:
    said = judged(299).why
    assert (
        "accepted none of 299 interrupts seen, therefore at most 1.00 % of all (95 % confidence)"
        in said
    )
    assert "at most 0.01 % of all" in judged(10**9).why, "never less than it is"
    said = judged(1).why
    assert "too few to decide" in said
    assert "none of 1 interrupt seen; 299 would show that it is less than 1 %" in said


def test_parameters_are_a_hint() -> None:
    parameters = {"kvm_intel.enable_apicv": "Y", "kvm_intel.enable_ipiv": "N", "kvm.x": "1"}
    said = hint("kvm_intel", parameters)
    assert said == "hint, not evidence: kvm_intel has enable_apicv=Y, enable_ipiv=N"
    assert hint("kvm_other", parameters) == ""
    assert hint(None, None) == ""


def interrupts(pin: tuple[int, int], piw: tuple[int, int]) -> str:
    return f"      CPU0 CPU1\n PIN: {pin[0]} {pin[1]} x\n PIW: {piw[0]} {piw[1]} x\n RES: 9 9 x\n"


def test_late_posts_say_where_and_who_was_there() -> None:
    before = parse_interrupts(interrupts((5, 5), (0, 0)))
    after = parse_interrupts(interrupts((5, 8), (0, 1)))
    found = late_posts(before, after, {0: {"a"}, 1: {"b", "a"}}, dict)
    assert found.rows == {"PIN": 3, "PIW": 1}
    assert found.cpus == (CpuPosts(1, {"PIN": 3, "PIW": 1}, ("a", "b"), ()),)
    assert found.elsewhere == {}


def test_late_posts_where_no_watched_vcpu_was_are_told() -> None:
    before = parse_interrupts(interrupts((5, 5), (0, 0)))
    after = parse_interrupts(interrupts((9, 8), (0, 1)))
    found = late_posts(before, after, {0: {"a"}}, lambda _cpus: {0: {"a"}, 1: {"b", "a"}})
    assert found.elsewhere == {"PIN": {1: 3}, "PIW": {1: 1}}
    assert [(cpu.cpu, cpu.vms, cpu.allowed) for cpu in found.cpus] == [
        (0, ("a",), ()),
        (1, (), ("a", "b")),
    ]


def test_no_rows_is_not_no_posts() -> None:
    nothing = parse_interrupts("      CPU0\n RES: 9 x\n")
    for before in (nothing, None):
        found = late_posts(before, nothing, {}, dict)
        assert found.rows is None
        assert found.elsewhere == {}
        assert found.absent


def test_a_foreign_vms_exits(tmp_path: Path) -> None:
    files = HostFiles(tmp_path)
    assert read_vm_exits(None, files) == "debugfs does not show this VM"
    vm = tmp_path / "sys/kernel/debug/kvm/12-8"
    vm.mkdir(parents=True)
    assert "no exit counters" in str(read_vm_exits("12-8", files))
    (vm / "exits").write_text("70\n")
    (vm / "halt_exits").write_text("7\n")
    (vm / "tlb_flush").write_text("3\n")
    assert read_vm_exits("12-8", files) == {"exits": 70, "halt_exits": 7}
    (vm / "exits").unlink()
    (vm / "halt_exits").unlink()
    (vm / "exits").mkdir()  # there, and cannot be read
    assert "cannot be read (no number)" in str(read_vm_exits("12-8", files))


def test_room_grows_with_the_vm_and_has_an_end() -> None:
    assert [cells_for(n) for n in (1, 2, 64, 255, 4096)] == [512, 512, 1024, 4096, 4096]
    assert all(cells_for(n) >= 2 * n for n in range(1, 1024))
    assert (slots_for(2, all_vms=False), slots_for(0, all_vms=False)) == (2, 1)
    assert slots_for(2, all_vms=True) == 256 + MOST_CLAIMS
    assert slots_for(300, all_vms=True) == 600 + MOST_CLAIMS
