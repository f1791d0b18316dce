# SPDX-License-Identifier: Apache-2.0
"""The paths an IPI can take: one table."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final


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


@dataclass(frozen=True)
class PathSpec:
    """What a path is.

    Attributes:
        rank: what the path costs the sender in exits: 0 none, 1 an exit that KVM's fastpath
            handles, 2 an exit that KVM handles in its usual way. None: not known.
        meaning: one sentence.
    """

    path: IpiPath
    rank: int | None
    meaning: str


PATHS: Final = (
    PathSpec(IpiPath.UNKNOWN, None, "the evidence does not tell"),
    PathSpec(IpiPath.EMULATED, 2, "KVM emulated the ICR write; kvm_exit never fires on this host"),
    PathSpec(IpiPath.MSR_EXIT, 2, "an exit for the ICR's MSR"),
    PathSpec(IpiPath.MSR_FASTPATH, 1, "an exit for the ICR's MSR, handled by KVM's fastpath"),
    PathSpec(IpiPath.APIC_WRITE, 2, "an APIC-write exit after the hardware's own register write"),
    PathSpec(IpiPath.MMIO, 2, "an exit for the ICR's memory"),
    PathSpec(IpiPath.PV_HYPERCALL, 2, "the KVM_HC_SEND_IPI hypercall"),
    PathSpec(IpiPath.AVIC_INCOMPLETE, 2, "AVIC tried and left the rest to KVM"),
    PathSpec(IpiPath.EXITLESS, 0, "no exit and no KVM event at the sender, while both are watched"),
)

PATH_RANKS: Final = {spec.path.text: spec.rank for spec in PATHS if spec.rank is not None}
"""Less is better. A path whose cost is not known has no rank."""
