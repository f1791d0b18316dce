# SPDX-License-Identifier: Apache-2.0
"""A running virtual machine, as the host's kernel shows it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

ApicMode = Literal["x2apic", "xapic", "off"]
OWN_NAME = "pid:"
"""How the alias begins that ipitrace itself gives; nobody else's name may begin so."""
Evidence = Literal["debugfs", "syscall", "kvm_entry"]
"""How a vCPU's thread was told from the process's other threads.

debugfs: KVM names it (/sys/kernel/debug/kvm/<vm>/vcpu<n>/pid).
syscall: it was seen inside the KVM_RUN ioctl on the vCPU's descriptor.
kvm_entry: it was seen at that tracepoint, entering the guest as this vCPU.
"""


@dataclass(frozen=True)
class Vcpu:
    """One vCPU and the thread that runs it."""

    index: int
    """KVM's id of it (on x86 also its initial APIC id)."""
    tid: int | None
    """None: its thread is not known; VirtualMachine.unknown says why."""
    cpus: tuple[int, ...]
    """The host CPUs its thread may run on; () when the thread is not known."""
    evidence: Evidence | None = None
    fd: int | None = None
    """The VMM's descriptor of it."""


@dataclass(frozen=True)
class VirtualMachine:
    """One VM. None is unknown, and `unknown` says why, by the field's name."""

    pid: int
    """The VMM's process, as seen from here."""
    name: str
    aliases: tuple[str, ...]
    """Every name it answers to, `name` first."""
    vmm: str
    """"QEMU", "Firecracker", ..., or "unknown VMM (exe)"."""
    vcpus: tuple[Vcpu, ...]
    memory_bytes: int | None
    """What the VMM was started with; ballooning and hot-plug do not show."""
    started_at_ticks: int
    """The process's start in clock ticks since boot: a reused pid has another."""
    apic_mode: ApicMode | None
    """As KVM stated it when a vCPU last returned to the VMM."""
    backend: str | None
    """The KVM module that runs it (see HostFingerprint.kvm_backend)."""
    vm_fd: int
    """The VMM's descriptor of it."""
    creator_tid: int | None
    """The thread that created it, after which debugfs names it: <creator_tid>-<vm_fd>."""
    unknown: Mapping[str, str]
    uid: int | None = None
    """The user its process runs as (effective): anybody may give a VM any name."""

    @property
    def own_name(self) -> str:
        """The alias that no other VM has, `pid:N` or `pid:N-FD`."""
        return next(alias for alias in self.aliases if alias.startswith(OWN_NAME))

    @property
    def directory(self) -> str | None:
        """Its name in debugfs; None where it is not known."""
        return None if self.creator_tid is None else f"{self.creator_tid}-{self.vm_fd}"

    @property
    def tids(self) -> tuple[int, ...]:
        """The vCPU threads that are known, in the vCPUs' order."""
        return tuple(vcpu.tid for vcpu in self.vcpus if vcpu.tid is not None)

    def to_dict(self) -> dict[str, object]:
        """The machine as types that json accepts (tuples become arrays)."""
        return asdict(self)


@dataclass(frozen=True)
class OddProcess:
    """A process of which something was left out or refused when VMs were looked for."""

    pid: int
    name: str
    """The process's own (comm), which says nothing of what it is."""
    uid: int | None
    """The user it runs as (effective); None when it has ended meanwhile."""
    why: tuple[str, ...]

    @property
    def says(self) -> str:
        """It and what is wrong with it, in one line."""
        user = "" if self.uid is None else f", user {self.uid}"
        return f"pid {self.pid} ({self.name}{user}): {'; '.join(self.why)}"
