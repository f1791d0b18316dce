# SPDX-License-Identifier: Apache-2.0
"""A running virtual machine as the kernel of the host reports it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from ipitrace.vm.confidential import Confidential

ApicMode = Literal["x2apic", "xapic", "off"]
OWN_NAME = "pid:"
"""The prefix of aliases that ipitrace gives; no other name may begin with it."""
Evidence = Literal["debugfs", "syscall", "kvm_entry"]
"""How a vCPU's thread was distinguished from the process's other threads.

debugfs: KVM names it (/sys/kernel/debug/kvm/<vm>/vcpu<n>/pid).
syscall: it was observed in the KVM_RUN ioctl on the vCPU's descriptor.
kvm_entry: it was observed at that tracepoint, entering the guest as this vCPU.
"""


@dataclass(frozen=True)
class Vcpu:
    """One vCPU and the thread that runs it."""

    index: int
    """KVM's id of the vCPU (on x86 also its initial APIC id)."""
    tid: int | None
    """None: the thread is unknown; VirtualMachine.unknown has the reason."""
    cpus: tuple[int, ...]
    """The host CPUs that the thread may run on; () if the thread is unknown."""
    evidence: Evidence | None = None
    fd: int | None = None
    """The VMM's descriptor of the vCPU."""


@dataclass(frozen=True)
class VirtualMachine:
    """One VM. None is unknown; `unknown` has the reason, by the field's name."""

    pid: int
    """The VMM's process, in this process's pid namespace."""
    name: str
    aliases: tuple[str, ...]
    """All names that select the VM, `name` first."""
    vmm: str
    """"QEMU", "Firecracker", ..., or "unknown VMM (exe)"."""
    vcpus: tuple[Vcpu, ...]
    memory_bytes: int | None
    """The memory with which the VMM was started, without ballooning and hot-plug."""
    started_at_ticks: int
    """The process's start in clock ticks since boot: distinguishes it from a reused pid."""
    apic_mode: ApicMode | None
    """As reported by KVM when a vCPU last returned to the VMM."""
    backend: str | None
    """The KVM module that runs it (see HostFingerprint.kvm_backend)."""
    vm_fd: int
    """The VMM's descriptor of the VM."""
    creator_tid: int | None
    """The thread that created the VM; part of its name in debugfs: <creator_tid>-<vm_fd>."""
    unknown: Mapping[str, str]
    uid: int | None = None
    """The effective user of its process: any user may give a VM any name."""
    confidential: Confidential | None = None
    """How it is protected from the host; None if its VMM's command line does not name it."""

    @property
    def own_name(self) -> str:
        """The alias that no other VM has, `pid:N` or `pid:N-FD`."""
        return next(alias for alias in self.aliases if alias.startswith(OWN_NAME))

    @property
    def directory(self) -> str | None:
        """The VM's name in debugfs; None if unknown."""
        return None if self.creator_tid is None else f"{self.creator_tid}-{self.vm_fd}"

    @property
    def tids(self) -> tuple[int, ...]:
        """The known vCPU threads, in the vCPUs' order."""
        return tuple(vcpu.tid for vcpu in self.vcpus if vcpu.tid is not None)

    def to_dict(self) -> dict[str, object]:
        """The machine as types that json supports (tuples become arrays)."""
        return asdict(self)


@dataclass(frozen=True)
class OddProcess:
    """A process of which data was ignored or rejected during the search for VMs."""

    pid: int
    name: str
    """The process's name for itself (comm), which is not reliable."""
    uid: int | None
    """The effective user of the process; None if it has ended meanwhile."""
    why: tuple[str, ...]

    @property
    def says(self) -> str:
        """The process and its problems in one line."""
        user = "" if self.uid is None else f", user {self.uid}"
        return f"pid {self.pid} ({self.name}{user}): {'; '.join(self.why)}"
