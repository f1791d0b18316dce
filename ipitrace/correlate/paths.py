# SPDX-License-Identifier: Apache-2.0
"""How each IPI travelled, proved by what was seen and never by a module parameter."""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

VMX, SVM = 1, 2  # the isa of kvm_exit; 0 where the layout has none


class Path(IntEnum):
    """The ways an IPI can go; `text` is how outputs spell it."""

    UNKNOWN = 0
    EMULATED = 1
    MSR_EXIT = 2
    MSR_FASTPATH = 3
    APIC_WRITE = 4
    MMIO = 5
    PV_HYPERCALL = 6
    AVIC_INCOMPLETE = 7
    EXITLESS = 8

    @property
    def text(self) -> str:
        """As tables and recordings spell it."""
        return self.name.lower().replace("_", "-")


MEANINGS = {
    Path.UNKNOWN: "the evidence does not tell",
    Path.EMULATED: "KVM emulated the ICR write; kvm_exit never fires on this host",
    Path.MSR_EXIT: "an exit for the ICR's MSR",
    Path.MSR_FASTPATH: "an exit for the ICR's MSR, handled by KVM's fastpath",
    Path.APIC_WRITE: "an APIC-write exit after the hardware's own register write",
    Path.MMIO: "an exit for the ICR's memory",
    Path.PV_HYPERCALL: "the KVM_HC_SEND_IPI hypercall",
    Path.AVIC_INCOMPLETE: "AVIC tried and left the rest to KVM",
    Path.EXITLESS: "no exit and no KVM event at the sender, while both are watched",
}

# Exit reasons an IPI's send can cause, by isa (SDM vol. 3C, appendix C; APM vol. 2,
# appendix C; the flag bits above 15 of VMX reasons are masked off first).
_BY_REASON: dict[tuple[int, int], Path] = {
    (VMX, 18): Path.PV_HYPERCALL,  # VMCALL
    (VMX, 32): Path.MSR_EXIT,
    (VMX, 85): Path.MSR_EXIT,  # WRMSRNS with an immediate
    (VMX, 44): Path.MMIO,  # APIC access
    (VMX, 48): Path.MMIO,  # EPT violation
    (VMX, 49): Path.MMIO,  # EPT misconfiguration
    (VMX, 56): Path.APIC_WRITE,
    (SVM, 0x7C): Path.MSR_EXIT,
    (SVM, 0x81): Path.PV_HYPERCALL,  # VMMCALL
    (SVM, 0x400): Path.MMIO,  # nested page fault
    (SVM, 0x401): Path.AVIC_INCOMPLETE,
    (SVM, 0x402): Path.MMIO,  # AVIC: unaccelerated access
}
_VMX_BASIC_REASON = 0xFFFF
_NEEDS_ICR_EVENT = (Path.MMIO, Path.MSR_EXIT)


def path_of_exits(isa: NDArray[np.uint16], reason: NDArray[np.uint32]) -> NDArray[np.int8]:
    """The Path each kvm_exit would prove if a send caused it; UNKNOWN for all other reasons."""
    basic = np.where(isa == VMX, reason & _VMX_BASIC_REASON, reason)
    path = np.full(len(reason), Path.UNKNOWN, np.int8)
    for (of_isa, of_reason), proved in _BY_REASON.items():
        path[(isa == of_isa) & (basic == of_reason)] = proved
    return path


def classify(
    *,
    exit_path: NDArray[np.int8],
    hypercall: NDArray[np.bool_],
    avic_incomplete: NDArray[np.bool_],
    fastpath: NDArray[np.bool_],
    kvm_took_it: NDArray[np.bool_],
    exits_fire: bool,
    complete: bool,
) -> NDArray[np.int8]:
    """The path of each send, from the evidence inside its send window; arrays of shape (n,).

    Args:
        exit_path: what its send exit proves (path_of_exits), UNKNOWN where there is none.
        hypercall: kvm_hypercall SEND_IPI seen.
        avic_incomplete: kvm_avic_incomplete_ipi seen.
        fastpath: KVM's MSR fastpath was seen to run.
        kvm_took_it: kvm_apic_ipi, or a write of the ICR, seen.
        exits_fire: kvm_exit fired at all in this VM, so that its absence means something.
        complete: nothing was lost, so that any absence means something.
    """
    path = np.full(len(exit_path), Path.UNKNOWN, np.int8)
    if complete:
        nothing = ~kvm_took_it & ~hypercall & ~avic_incomplete & (exit_path == Path.UNKNOWN)
        if exits_fire:
            path[nothing] = Path.EXITLESS
        else:
            path[kvm_took_it] = Path.EMULATED
    # an EPT violation or MSR write proves the send's path only if KVM saw an IPI there
    proved = (exit_path != Path.UNKNOWN) & (~np.isin(exit_path, _NEEDS_ICR_EVENT) | kvm_took_it)
    path[proved] = exit_path[proved]
    path[fastpath & (path == Path.MSR_EXIT)] = Path.MSR_FASTPATH
    path[avic_incomplete] = Path.AVIC_INCOMPLETE
    path[hypercall] = Path.PV_HYPERCALL
    return path
