# SPDX-License-Identifier: Apache-2.0
"""What KVM itself says of its VMs: /sys/kernel/debug/kvm/<creator's tid>-<VM's descriptor>.

Each directory has a vcpu<n> for each vCPU, and in it, since "KVM: debugfs: expose pid of
vcpu threads", `pid`: the thread that last ran the vCPU, 0 before the first time. Ids are
those of the initial pid namespace.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ipitrace.host.files import HOST, HostFiles

KVM_DIR: Final = "/sys/kernel/debug/kvm"
_DIRECTORY: Final = re.compile(r"([0-9]{1,10})-([0-9]{1,10})")
_VCPU: Final = re.compile(r"vcpu([0-9]{1,9})")


@dataclass(frozen=True)
class VmDirectory:
    """One VM's directory."""

    creator_tid: int
    vm_fd: int
    vcpu_tids: Mapping[int, int | None]
    """Thread by vCPU id; None where KVM does not say, or no thread has run it yet."""
    not_run: frozenset[int] = frozenset()
    """Those vCPUs of which KVM says that no thread has run them yet."""

    @property
    def name(self) -> str:
        """As debugfs spells it."""
        return f"{self.creator_tid}-{self.vm_fd}"

    def threads(self) -> frozenset[int]:
        """Those of the process that has the VM.

        The thread that created the VM may have gone, but not those that run it.
        """
        return frozenset({self.creator_tid, *filter(None, self.vcpu_tids.values())})


def vm_directory_names(files: HostFiles = HOST) -> frozenset[str] | None:
    """The directories' names alone, which is one look; None where debugfs cannot be read."""
    names = files.listing(KVM_DIR)
    return None if names is None else frozenset(filter(_DIRECTORY.fullmatch, names))


def read_vm_directory(name: str, files: HostFiles = HOST) -> VmDirectory | None:
    """The directory of this name; None where it is no VM's. A VM that is gone has no vCPUs."""
    match = _DIRECTORY.fullmatch(name)
    if match is None:
        return None
    tids = {
        int(vcpu[1]): files.number(f"{KVM_DIR}/{name}/{vcpu[0]}/pid")
        for entry in files.names(f"{KVM_DIR}/{name}")
        if (vcpu := _VCPU.fullmatch(entry))
    }
    not_run = frozenset(index for index, tid in tids.items() if tid == 0)
    named = {index: tid or None for index, tid in tids.items()}
    return VmDirectory(int(match[1]), int(match[2]), named, not_run)
