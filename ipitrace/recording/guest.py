# SPDX-License-Identifier: Apache-2.0
"""The guest of a run, as run.json has it."""

from dataclasses import dataclass
from typing import Final

from ipitrace.base.loading import OpenObject

_MICRO_ALONE: Final = frozenset({"payload_sha256"})
_LINUX_ALONE: Final = frozenset(
    {
        *("via", "kernel", "emulated", "apic_mode", "module_version", "module_srcversion"),
        *("helper_version", "apic_ids", "vm"),
    }
)


@dataclass(frozen=True)
class VmResult(OpenObject):
    """The guest's VM on the host of the run."""

    name: str
    vmm: str
    pid: int | None = None


@dataclass(frozen=True)
class GuestResult(OpenObject):
    """The guest of a run.

    Attributes:
        kind: `micro` for the built-in guest, `linux`, or `native` for a machine without a
            hypervisor below it.
        n_vcpus: vCPUs, or CPUs of a native machine.
        pinned_cpus: the host CPU of each vCPU; None if they may move.
        payload_sha256: identifies the built-in guest's code. Only `micro` has this key. Only
            the other kinds have the keys below.
        via: the transport, without its address.
        kernel: the guest's kernel release.
        emulated: the program that emulates the guest's CPUs. Cycles are then not real time.
        apic_mode: `x2apic` or `xapic`.
        module_version: of the kernel module ipitrace_storm.
        module_srcversion: a hash of the module's sources.
        helper_version: of the program ipitrace-storm.
        apic_ids: each CPU's; None if the CPU numbers were used as KVM's vCPU ids.
        vm: the VM on this host; None if none was searched for, or none was found.
    """

    kind: str
    n_vcpus: int
    pinned_cpus: tuple[int, ...] | None = None
    payload_sha256: str | None = None
    via: str | None = None
    kernel: str | None = None
    emulated: str | None = None
    apic_mode: str | None = None
    module_version: str | None = None
    module_srcversion: str | None = None
    helper_version: str | None = None
    apic_ids: tuple[int, ...] | None = None
    vm: VmResult | None = None


def micro_guest(
    n_vcpus: int, pinned_cpus: tuple[int, ...] | None, payload_sha256: str
) -> GuestResult:
    """The built-in guest."""
    return GuestResult("micro", n_vcpus, pinned_cpus, payload_sha256, absent=_LINUX_ALONE)


def linux_guest(
    *,
    native: bool,
    n_vcpus: int,
    pinned_cpus: tuple[int, ...] | None,
    via: str,
    kernel: str,
    emulated: str | None,
    apic_mode: str | None,
    module_version: str | None,
    module_srcversion: str | None,
    helper_version: str,
    apic_ids: tuple[int, ...] | None,
    vm: VmResult | None,
) -> GuestResult:
    """A Linux guest, or with `native` a Linux machine that is not a guest."""
    return GuestResult(
        "native" if native else "linux",
        n_vcpus,
        pinned_cpus,
        via=via,
        kernel=kernel,
        emulated=emulated,
        apic_mode=apic_mode,
        module_version=module_version,
        module_srcversion=module_srcversion,
        helper_version=helper_version,
        apic_ids=apic_ids,
        vm=vm,
        absent=_MICRO_ALONE,
    )
