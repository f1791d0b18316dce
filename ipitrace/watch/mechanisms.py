# SPDX-License-Identifier: Apache-2.0
"""The ways in which an IPI can reach its target without a trace here, and what excludes each.

A VM's count of IPIs is complete only if every one of them is excluded by evidence. A module's
parameter excludes a mechanism only where it switches it off for all VMs and cannot be changed
later.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from ipitrace.watch.evidence import ENOUGH
from ipitrace.words.exit_reasons import Isa


@dataclass(frozen=True)
class Facts:
    """What is known about one VM, and about the KVM that runs it.

    Attributes:
        accepted: interrupts with a vector that KVM's local APICs accepted in the VM's threads.
        taken: those among them that APICv or AVIC accepted.
        hooks: the tracepoints that are attached.
        isa: the CPU's kind of exits, an Isa; 0 if it has neither VMX nor SVM.
        backend: the module that runs VMs; None if it is not known.
        parameters: the modules' parameters by "module.name"; None if they cannot be read.
        exit_reasons: the names of the reasons of the VM's exits; None if no exit was seen.
        xen_hypercalls: hypercalls of the VM that kvm_xen_hypercall reported.
        confidential: the VMM's command line makes it a confidential VM.
        unwatched: vCPUs that are not watched.
        missed: events of the VM that were not counted.
        skipped: events of SHOW_SENDS, of any VM, for which the kernel skipped the program.
    """

    accepted: int = 0
    taken: int = 0
    hooks: frozenset[str] = frozenset()
    isa: int = 0
    backend: str | None = None
    parameters: Mapping[str, str] | None = None
    exit_reasons: frozenset[str] | None = None
    xen_hypercalls: int = 0
    confidential: bool = False
    unwatched: int = 0
    missed: int = 0
    skipped: int = 0


@dataclass(frozen=True)
class Mechanism:
    """One way of an IPI that leaves no trace.

    Attributes:
        name: as in outputs.
        reason: why its IPIs are not counted.
        evidence: what excludes it.
        excluded: True if the facts exclude it, False if they show it in use, None if neither.
    """

    name: str
    reason: str
    evidence: str
    excluded: Callable[[Facts], bool | None]


SHOW_SENDS: Final = ("kvm_apic_ipi", "kvm_apic_accept_irq", "kvm_hypercall")
"""The events by which IPIs are counted."""

_APICV_EVENT: Final = "kvm_apicv_accept_irq"
_HYPERV_EVENTS: Final = {"kvm_hv_send_ipi", "kvm_hv_send_ipi_ex"}
_ENTER_NESTED: Final = {"VMLAUNCH", "VMRESUME", "vmrun"}
_ON: Final = ("Y", "1")
_OFF: Final = ("N", "0")
_KNOWN_BACKENDS: Final = ("kvm_intel", "kvm_amd")
_CONFIDENTIAL: Final = ("kvm_amd.sev_snp", "kvm_intel.tdx")


def _apicv_inactive(facts: Facts) -> bool | None:
    if facts.taken:
        return False
    return True if _APICV_EVENT in facts.hooks and facts.accepted >= ENOUGH else None


def _needs_apicv(*isas: int) -> Callable[[Facts], bool | None]:
    """For what only a CPU of these kinds has, and only with APICv or AVIC."""
    return lambda facts: True if facts.isa not in isas else _apicv_inactive(facts)


def _attached(*events: str) -> Callable[[Facts], bool | None]:
    return lambda facts: True if facts.hooks.issuperset(events) else None


def _no_xen(facts: Facts) -> bool | None:
    if facts.xen_hypercalls:
        return False
    return True if "kvm_xen_hypercall" in facts.hooks else None


def _no_nested(facts: Facts) -> bool | None:
    if facts.exit_reasons is not None:
        return _ENTER_NESTED.isdisjoint(facts.exit_reasons)
    parameters = facts.parameters or {}
    off = parameters.get(f"{facts.backend}.nested") in _OFF
    return True if off or facts.isa == 0 else None


def _not_confidential(facts: Facts) -> bool | None:
    if facts.confidential:
        return None
    if facts.isa == 0:
        return True
    if facts.parameters is None:
        return None
    return None if any(facts.parameters.get(name) in _ON for name in _CONFIDENTIAL) else True


def _known_backend(facts: Facts) -> bool | None:
    return True if facts.isa == 0 or facts.backend in _KNOWN_BACKENDS else None


MECHANISMS: Final = (
    Mechanism(
        "self-IPIs with virtual interrupt delivery",
        "the CPU handles a write of SELF_IPI, and of the ICR to the vCPU itself, without an exit",
        "no VMX, or APICv accepted none of many interrupts",
        _needs_apicv(Isa.VMX),
    ),
    Mechanism(
        "Intel's IPI virtualization",
        "the CPU posts the IPI to the target without an exit",
        "no VMX, or APICv accepted none of many interrupts",
        _needs_apicv(Isa.VMX),
    ),
    Mechanism(
        "AVIC and x2AVIC",
        "the CPU sets the IPI in the target's backing page without an exit",
        "no SVM, or AVIC accepted none of many interrupts",
        _needs_apicv(Isa.SVM),
    ),
    Mechanism(
        "Passthrough IPI",
        "the guest posts the IPI itself and writes the physical ICR",
        "APICv or AVIC accepted none of many interrupts: it needs posted interrupts",
        _apicv_inactive,
    ),
    Mechanism(
        "KVM's hypercall",
        "KVM_HC_SEND_IPI does not go through the ICR",
        "the tracepoint kvm_hypercall is attached",
        _attached("kvm_hypercall"),
    ),
    Mechanism(
        "Hyper-V's hypercalls",
        "HvCallSendSyntheticClusterIpi does not go through the ICR, nor through kvm_apic_ipi",
        "the tracepoints kvm_hv_send_ipi and kvm_hv_send_ipi_ex are attached",
        _attached(*_HYPERV_EVENTS),
    ),
    Mechanism(
        "Xen's event channels",
        "KVM handles EVTCHNOP_send in the kernel, and sets the target's upcall",
        "the tracepoint kvm_xen_hypercall is attached, and the VM makes none",
        _no_xen,
    ),
    Mechanism(
        "a nested guest",
        "IPIs between the vCPUs of a guest in the guest are that hypervisor's",
        "no VMX or SVM, or nested=N, or no exit of the VM is for entering a guest",
        _no_nested,
    ),
    Mechanism(
        "a confidential VM's own APIC",
        "Secure AVIC and the TDX module deliver interrupts of which KVM is not told",
        "no VMX or SVM, or neither kvm_amd.sev_snp nor kvm_intel.tdx is on",
        _not_confidential,
    ),
    Mechanism(
        "an APIC in user space",
        "the VMM handles the ICR (kernel_irqchip=off), and KVM injects what it says",
        "KVM's own APIC accepted interrupts in the VM's threads",
        lambda facts: True if facts.accepted else None,
    ),
    Mechanism(
        "interrupts by MSI and irqfd",
        "the VMM, or a device, can interrupt a vCPU at a guest's request",
        "the tracepoint kvm_apic_accept_irq is attached: they are counted as others",
        _attached("kvm_apic_accept_irq"),
    ),
    Mechanism(
        "a KVM that is not known",
        "another backend than kvm_intel and kvm_amd may have ways of its own",
        "the backend is one of the two, or the CPU has neither VMX nor SVM: KVM delivers all",
        _known_backend,
    ),
    Mechanism(
        "vCPUs that are not watched",
        "what they send is not counted",
        "every vCPU of the VM is watched",
        lambda facts: None if facts.unwatched else True,
    ),
    Mechanism(
        "events that were missed",
        "a program did not run because another one was running on the same CPU",
        "none was missed, and the kernel skipped no program that counts IPIs",
        lambda facts: None if facts.missed or facts.skipped else True,
    ),
)
