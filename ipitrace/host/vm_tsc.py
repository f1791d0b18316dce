# SPDX-License-Identifier: Apache-2.0
"""TSC offset and scaling of any VM's vCPUs, from debugfs.

KVM provides /sys/kernel/debug/kvm/<pid>-<fd>/vcpu<n>/tsc-offset (signed, decimal). If it
supports scaling, tsc-scaling-ratio and tsc-scaling-ratio-frac-bits are in the same directory:
arch/x86/kvm/debugfs.c. The pid is the id of the thread that created the VM.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ipitrace.clock import GuestTsc
from ipitrace.host.files import HOST, HostFiles

_KVM = "/sys/kernel/debug/kvm"
_VCPU = "vcpu"
_MOUNT_HINT = "mount it with: mount -t debugfs debugfs /sys/kernel/debug"


@dataclass(frozen=True)
class VmTsc:
    """The TSCs of one VM, from debugfs.

    Attributes:
        vcpus: vCPU number to its TSC, for the vCPUs that could be read.
        absent: why TSCs could not be read; None if all were read.
    """

    vcpus: Mapping[int, GuestTsc]
    absent: str | None


def read_vm_tsc(pid: int, fd: int | None = None, files: HostFiles = HOST) -> VmTsc:
    """Read the TSCs of the VM that `pid` created; `fd` selects one of several VMs."""
    directories = files.listing(_KVM)
    if directories is None:
        return VmTsc({}, f"debugfs cannot be read; {_MOUNT_HINT}")
    prefix = f"{pid}-" if fd is None else f"{pid}-{fd}"
    vms = [n for n in directories if n.startswith(prefix) and (fd is None or n == prefix)]
    if len(vms) != 1:
        found = "no VM" if not vms else f"{len(vms)} VMs ({', '.join(vms)})"
        return VmTsc({}, f"debugfs shows {found} of process {pid}")
    vcpus: dict[int, GuestTsc] = {}
    reasons: list[str] = []
    for name in files.names(f"{_KVM}/{vms[0]}"):
        number = name.removeprefix(_VCPU)
        if not name.startswith(_VCPU) or not number.isdecimal():
            continue
        tsc = _vcpu_tsc(files, f"{_KVM}/{vms[0]}/{name}")
        if isinstance(tsc, GuestTsc):
            vcpus[int(number)] = tsc
        else:
            reasons.append(tsc)
    if not vcpus and not reasons:
        reasons.append(f"{_KVM}/{vms[0]} shows no vCPUs")
    return VmTsc(dict(sorted(vcpus.items())), reasons[0] if reasons else None)


def _vcpu_tsc(files: HostFiles, directory: str) -> GuestTsc | str:
    """One vCPU's TSC, or the reason why it is unknown."""
    present = files.names(directory)
    names = ("tsc-offset", "tsc-scaling-ratio", "tsc-scaling-ratio-frac-bits")
    offset, ratio, frac_bits = (files.number(f"{directory}/{name}") for name in names)
    for name, value in zip(names, (offset, ratio, frac_bits), strict=True):
        if value is None and name in present:
            return f"{directory}/{name} cannot be read; a locked-down kernel forbids it"
    if offset is None:
        return f"{directory} has no tsc-offset"
    if ratio is None or frac_bits is None:
        return GuestTsc(offset)  # this KVM does not support scaling
    try:
        return GuestTsc(offset, ratio, frac_bits)
    except ValueError as error:
        return f"{directory}: {error}"
