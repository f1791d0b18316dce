# SPDX-License-Identifier: Apache-2.0
"""The paths an IPI can take."""

from enum import IntEnum


class IpiPath(IntEnum):
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
    IpiPath.UNKNOWN: "the evidence does not tell",
    IpiPath.EMULATED: "KVM emulated the ICR write; kvm_exit never fires on this host",
    IpiPath.MSR_EXIT: "an exit for the ICR's MSR",
    IpiPath.MSR_FASTPATH: "an exit for the ICR's MSR, handled by KVM's fastpath",
    IpiPath.APIC_WRITE: "an APIC-write exit after the hardware's own register write",
    IpiPath.MMIO: "an exit for the ICR's memory",
    IpiPath.PV_HYPERCALL: "the KVM_HC_SEND_IPI hypercall",
    IpiPath.AVIC_INCOMPLETE: "AVIC tried and left the rest to KVM",
    IpiPath.EXITLESS: "no exit and no KVM event at the sender, while both are watched",
}
