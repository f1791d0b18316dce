# SPDX-License-Identifier: Apache-2.0
"""The host of a run, as run.json has it. The value of a key is null if it could not be read."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ipitrace.base.loading import OpenObject


@dataclass(frozen=True)
class HostFingerprint(OpenObject):
    """A host as its kernel describes it. None means "could not be read", never a default."""

    cpu_model: str | None = None
    """The CPU's brand string ("AMD EPYC 7502P 32-Core Processor")."""
    cpu_vendor: str | None = None
    """CPUID vendor ("GenuineIntel")."""
    cpu_signature: str | None = None
    """Family-model-stepping in decimal ("6-142-10"): several models can share one name."""
    microcode: str | None = None
    cpus_online: int | None = None
    smt: str | None = None
    """"on", "off", "notsupported" or "unknown"."""
    kernel_release: str | None = None
    kernel_version: str | None = None
    """The build string: build number, preemption model, date."""
    kernel_cmdline: str | None = None
    kvm_backend: str | None = None
    """"kvm_intel", "kvm_amd", another kvm_* module, "built-in/unknown"; None without KVM."""
    kvm_parameters: Mapping[str, str] | None = None
    """Every readable parameter of kvm and kvm_*, by "module.parameter"; None without KVM."""
    mitigations: Mapping[str, str] | None = None
    """/sys/devices/system/cpu/vulnerabilities, by name."""
    governor: str | None = None
    """The cpufreq governor; several, separated by commas, if CPUs differ."""
    turbo: bool | None = None
    cpuidle: str | None = None
    """"driver/governor": the idle state of a blocked target's CPU decides its wake-up time."""
    clocksource: str | None = None
    tsc_flags: tuple[str, ...] | None = None
    """The CPU flags that describe the quality of the TSC as a clock."""
    x2apic: bool | None = None
    virtualised: bool | None = None
    """The CPU's hypervisor flag: this host is itself a guest."""
    emulated: str | None = None
    """The program that emulates this host's CPU. Cycles are then not real time."""
    numa_nodes: int | None = None
    isolated_cpus: str | None = None
    """List format ("2-5"); "" means that there are none."""
    nohz_full_cpus: str | None = None
    """List format; "" means that there are none."""
    memory_bytes: int | None = None


@dataclass(frozen=True)
class KvmProcess(OpenObject):
    """A process that holds KVM virtual machines."""

    pid: int
    name: str
    n_vms: int | None = None
    n_vcpus: int | None = None


@dataclass(frozen=True)
class NeighboursResult(OpenObject):
    """The neighbours of a run; host.neighbours.Neighbours explains the keys."""

    kvm_processes: tuple[KvmProcess, ...] | None = None
    perf_event_pids: tuple[int, ...] | None = None
    unreadable_processes: int | None = None
    bpf_programs: int | None = None
    bpf_tracing_programs: int | None = None
    ftrace_kvm_instances: tuple[str, ...] | None = None
    load_average: tuple[float, float, float] | None = None
    unknown: Mapping[str, str] | None = None


@dataclass(frozen=True)
class PinningResult(OpenObject):
    """Where the guest's vCPUs ran.

    Attributes:
        overcommitted: there were more vCPUs than CPUs for them.
        why: cores, caches and NUMA nodes of the CPUs, or the reason why none was chosen.
    """

    overcommitted: bool
    why: str


@dataclass(frozen=True, kw_only=True)
class HostResult(OpenObject):
    """The host of a run.

    Attributes:
        one_line: a description of the host in one line.
        fingerprint: everything that is known to change the cost of IPIs.
        neighbours: the neighbours before the run.
        pinning: where the guest's vCPUs ran.
    """

    one_line: str
    fingerprint: HostFingerprint | None = field(default_factory=HostFingerprint)
    neighbours: NeighboursResult | None = field(default_factory=NeighboursResult)
    pinning: PinningResult
