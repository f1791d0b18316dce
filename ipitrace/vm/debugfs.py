# SPDX-License-Identifier: Apache-2.0
"""What KVM itself says of its VMs: /sys/kernel/debug/kvm/<creator's tid>-<VM's descriptor>.

Each directory has a vcpu<n> for each vCPU, and in it, since "KVM: debugfs: expose pid of
vcpu threads", `pid`: the thread that last ran the vCPU, 0 before the first time. Ids are
those of the initial pid namespace.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from ipitrace.host.files import HOST, HostFiles

KVM_DIR: Final = "/sys/kernel/debug/kvm"


@dataclass(frozen=True)
class VmDirectory:
    """One VM's directory."""

    creator_tid: int
    vm_fd: int
    vcpu_tids: Mapping[int, int | None]
    """Thread by vCPU id; None where KVM does not say, or no thread has run it yet."""

    @property
    def name(self) -> str:
        """As debugfs spells it."""
        return f"{self.creator_tid}-{self.vm_fd}"

    def belongs_to(self, tids: Collection[int], vm_fds: Collection[int]) -> bool:
        """Whether it is the VM of the process with these threads and descriptors.

        The thread that created the VM may have gone, but not those that run it.
        """
        threads = {self.creator_tid, *self.vcpu_tids.values()}
        return self.vm_fd in vm_fds and not threads.isdisjoint(tids)


def read_vm_directories(files: HostFiles = HOST) -> tuple[VmDirectory, ...] | None:
    """Every VM's directory; None where debugfs cannot be read."""
    names = files.listing(KVM_DIR)
    if names is None:
        return None
    matches = (re.fullmatch(r"(\d+)-(\d+)", name) for name in names)
    return tuple(
        VmDirectory(int(match[1]), int(match[2]), _vcpu_tids(files, f"{KVM_DIR}/{match[0]}"))
        for match in matches
        if match
    )


def _vcpu_tids(files: HostFiles, directory: str) -> dict[int, int | None]:
    matches = (re.fullmatch(r"vcpu(\d+)", name) for name in files.names(directory))
    return {
        int(match[1]): files.number(f"{directory}/{match[0]}/pid") or None
        for match in matches
        if match
    }
