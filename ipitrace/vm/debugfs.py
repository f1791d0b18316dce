# SPDX-License-Identifier: Apache-2.0
"""KVM's debugfs directories of its VMs: /sys/kernel/debug/kvm/<creator's tid>-<VM's descriptor>.

Each directory has a vcpu<n> for each vCPU. Since "KVM: debugfs: expose pid of vcpu threads",
vcpu<n> has the file `pid`: the thread that last ran the vCPU, 0 before the first run. Ids are
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
    """The debugfs directory of one VM."""

    creator_tid: int
    vm_fd: int
    vcpu_tids: Mapping[int, int | None]
    """Thread by vCPU id; None if KVM does not report it, or no thread has run the vCPU yet."""
    not_run: frozenset[int] = frozenset()
    """The vCPUs that no thread has run yet, according to KVM."""

    @property
    def name(self) -> str:
        """The directory's name in debugfs."""
        return f"{self.creator_tid}-{self.vm_fd}"

    def threads(self) -> frozenset[int]:
        """Threads of the process that has the VM.

        The thread that created the VM may have ended; the threads that run it have not.
        """
        return frozenset({self.creator_tid, *filter(None, self.vcpu_tids.values())})


def vm_directory_names(files: HostFiles = HOST) -> frozenset[str] | None:
    """The directories' names, from one listing; None if debugfs cannot be read."""
    names = files.listing(KVM_DIR)
    return None if names is None else frozenset(filter(_DIRECTORY.fullmatch, names))


def read_vm_directory(name: str, files: HostFiles = HOST) -> VmDirectory | None:
    """The directory of this name; None if it is not a VM's. An ended VM has no vCPUs."""
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
