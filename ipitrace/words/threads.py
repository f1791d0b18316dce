# SPDX-License-Identifier: Apache-2.0
"""The threads that run on a vCPU's CPU while the vCPU waits for it."""

from dataclasses import dataclass
from enum import StrEnum


class ThreadKind(StrEnum):
    """What kind of thread it is."""

    VCPU = "vcpu"  # another vCPU of the measured VM
    OTHER_VM = "other-vm"  # a vCPU of another VM
    IPITRACE = "ipitrace"  # ipitrace itself
    PROCESS = "process"  # any other thread, user space's or the kernel's
    IDLE = "idle"  # the CPU's idle task
    ENDED = "ended"  # had ended when its name was read
    OTHERS = "others"  # threads with small shares, added up
    SEVERAL = "several"  # several threads in turn; a switch between them was not recorded


@dataclass(frozen=True)
class NamedThread:
    """A thread as results name it; a process chooses its name itself."""

    kind: ThreadKind
    name: str
