# SPDX-License-Identifier: Apache-2.0
"""What processes hold open of KVM and perf: the kernel's own names for these descriptors."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from ipitrace.host.files import HOST, HostFiles

# anon_inode_getfd() in virt/kvm/kvm_main.c and kernel/events/core.c. A vCPU's link ends in
# ":" and its id on newer kernels; the statistics' ("kvm-vcpu-stats") are something else.
_VM_LINK: Final = "anon_inode:kvm-vm"
_VCPU_LINK: Final = "anon_inode:kvm-vcpu"
_PERF_LINK: Final = "anon_inode:[perf_event]"


@dataclass(frozen=True)
class Descriptors:
    """One process's descriptors of virtual machines, vCPUs and perf events."""

    pid: int
    vm_fds: tuple[int, ...]
    vcpu_fds: Mapping[int, int | None]
    """The vCPU's id by descriptor; None where the kernel does not name it."""
    n_perf_events: int


def read_descriptors(pid: int, files: HostFiles = HOST) -> Descriptors | None:
    """What process `pid` holds; None when it may not be looked into or is gone."""
    directory = f"/proc/{pid}/fd"
    names = files.listing(directory)
    if names is None:
        return None
    vm_fds: list[int] = []
    vcpu_fds: dict[int, int | None] = {}
    n_perf_events = 0
    for fd in sorted(int(name) for name in names if name.isdecimal()):
        link = files.link(f"{directory}/{fd}")
        if link is None or not link.startswith("anon_inode:"):
            continue
        if link == _VM_LINK:
            vm_fds.append(fd)
        elif link == _VCPU_LINK:
            vcpu_fds[fd] = None
        elif link.startswith(f"{_VCPU_LINK}:"):
            number = link.removeprefix(f"{_VCPU_LINK}:")
            vcpu_fds[fd] = int(number) if number.isdecimal() else None
        elif link == _PERF_LINK:
            n_perf_events += 1
    return Descriptors(pid, tuple(vm_fds), vcpu_fds, n_perf_events)


def scan_processes(
    files: HostFiles = HOST, skip: Collection[int] = ()
) -> tuple[list[Descriptors], int]:
    """Every process but `skip`, by pid, and how many more there are that may not be looked into.

    Two system calls for each open descriptor on the host.
    """
    found: list[Descriptors] = []
    unreadable = 0
    for pid in sorted(int(name) for name in files.names("/proc") if name.isdecimal()):
        if pid in skip:
            continue
        descriptors = read_descriptors(pid, files)
        if descriptors is not None:
            found.append(descriptors)
        else:
            # One that ended meanwhile is none; one still there is hidden.
            unreadable += files.listing(f"/proc/{pid}") is not None
    return found, unreadable
