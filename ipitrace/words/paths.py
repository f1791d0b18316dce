# SPDX-License-Identifier: Apache-2.0
"""The paths of IPIs: one table."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final


class IpiPath(IntEnum):
    """The paths of IPIs; `text` is the spelling in outputs."""

    UNKNOWN = 0
    EMULATED = 1
    MSR_EXIT = 2
    MSR_FASTPATH = 3
    APIC_WRITE = 4
    MMIO = 5
    PV_HYPERCALL = 6
    AVIC_INCOMPLETE = 7
    EXITLESS = 8
    HV_HYPERCALL = 9
    VMGEXIT = 10
    AVIC_INVALID_TYPE = 11
    AVIC_NOT_RUNNING = 12
    AVIC_INVALID_TARGET = 13
    AVIC_INVALID_PAGE = 14
    AVIC_INVALID_VECTOR = 15
    AVIC_UNACCELERATED = 16

    @property
    def text(self) -> str:
        """The spelling in tables and recordings."""
        return self.name.lower().replace("_", "-")


@dataclass(frozen=True)
class PathSpec:
    """The properties of a path.

    Attributes:
        rank: the cost of the path for the sender: 0 no exit, 1 an exit that KVM's fastpath
            handles, 2 an exit that KVM's usual exit handler handles. None: not known.
        meaning: one sentence.
    """

    path: IpiPath
    rank: int | None
    meaning: str


PATHS: Final = (
    PathSpec(IpiPath.UNKNOWN, None, "the host events do not show the path"),
    PathSpec(IpiPath.EMULATED, 2, "KVM emulated the ICR write; kvm_exit never fires on this host"),
    PathSpec(IpiPath.MSR_EXIT, 2, "an exit for the ICR's MSR"),
    PathSpec(IpiPath.MSR_FASTPATH, 1, "an exit for the ICR's MSR, handled by KVM's fastpath"),
    PathSpec(IpiPath.APIC_WRITE, 2, "an APIC-write exit after the hardware's own register write"),
    PathSpec(IpiPath.MMIO, 2, "an exit for the ICR's memory"),
    PathSpec(IpiPath.PV_HYPERCALL, 2, "the KVM_HC_SEND_IPI hypercall"),
    PathSpec(IpiPath.AVIC_INCOMPLETE, 2, "AVIC could not complete the IPI; the cause is not known"),
    PathSpec(IpiPath.EXITLESS, 0, "no exit and no KVM event of the sender, while both are watched"),
    PathSpec(IpiPath.HV_HYPERCALL, 2, "a Hyper-V hypercall: HvCallSendSyntheticClusterIpi(Ex)"),
    PathSpec(IpiPath.VMGEXIT, 2, "a VMGEXIT of a guest with SEV-ES or SEV-SNP"),
    PathSpec(IpiPath.AVIC_INVALID_TYPE, 2, "AVIC does not send this type of IPI, and KVM sent it"),
    PathSpec(
        IpiPath.AVIC_NOT_RUNNING,
        2,
        "AVIC set the IPI at a target that is not running; KVM wakes it",
    ),
    PathSpec(
        IpiPath.AVIC_INVALID_TARGET, 2, "AVIC does not know a target of the IPI, and KVM sent it"
    ),
    PathSpec(IpiPath.AVIC_INVALID_PAGE, 2, "AVIC found an invalid page; the IPI is not sent"),
    PathSpec(IpiPath.AVIC_INVALID_VECTOR, 2, "the vector is below 16; the IPI is not sent"),
    PathSpec(IpiPath.AVIC_UNACCELERATED, 2, "an exit for the ICR write, which AVIC leaves to KVM"),
)

PATH_RANKS: Final = {spec.path.text: spec.rank for spec in PATHS if spec.rank is not None}
"""Path to rank; less is better. A path whose cost is not known is not in the table."""
