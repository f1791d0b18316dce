# SPDX-License-Identifier: Apache-2.0
"""The descriptors of KVM and perf that processes hold, by the kernel's names for them.

A process may hold a million descriptors, and any user may start such a process. The number of
descriptors that are read is therefore limited. A reached limit is reported.
"""

import re
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from ipitrace.host.files import HOST, HostFiles

MOST_DESCRIPTORS: Final = 1 << 16  # of one process: a quarter of a second
FEW_DESCRIPTORS: Final = 1 << 10
SCAN_LIMIT_S: Final = 10.0
MOST_VMS: Final = 1024  # of one process
MOST_VCPUS: Final = 1 << 14  # of one process; one VM has at most 4096 (KVM_MAX_VCPUS)

# anon_inode_getfd() in virt/kvm/kvm_main.c and kernel/events/core.c. A vCPU's link ends in
# ":" and its id on newer kernels. "kvm-vcpu-stats" is a statistics descriptor, not a vCPU.
# A link to a file cannot have such a name, because it begins with "/".
_VM_LINK: Final = "anon_inode:kvm-vm"
VCPU_LINK: Final = re.compile(r"anon_inode:kvm-vcpu(?::([0-9]{1,9}))?")
_PERF_LINK: Final = "anon_inode:[perf_event]"
_FLAGS: Final = 6  # fields after the state, proc_pid_stat(5)
_PF_KTHREAD: Final = 0x00200000  # include/linux/sched.h
_NUMBER: Final = re.compile(r"[0-9]{1,10}")


@dataclass(frozen=True)
class Descriptors:
    """One process's descriptors of virtual machines, vCPUs and perf events."""

    pid: int
    vm_fds: tuple[int, ...]
    vcpu_fds: Mapping[int, int | None]
    """The vCPU's id by descriptor; None if the kernel does not report the id."""
    n_perf_events: int
    cut: tuple[str, ...] = ()
    """Messages about reached limits."""


def read_descriptors(
    pid: int, files: HostFiles = HOST, most: int = MOST_DESCRIPTORS
) -> Descriptors | None:
    """The descriptors of KVM and perf among the first `most` descriptors of process `pid`.

    None if its descriptors may not be read, or if it has ended.
    """
    directory = f"/proc/{pid}/fd"
    names = files.listing(directory, most + 1)
    if names is None:
        return None
    vm_fds: list[int] = []
    vcpu_fds: dict[int, int | None] = {}
    n_perf_events = n_seen = 0
    fds = sorted(int(name) for name in names if _NUMBER.fullmatch(name))
    for fd in fds[:most]:
        link = files.link(f"{directory}/{fd}")
        if link is None:
            continue
        n_seen += 1
        if not link.startswith("anon_inode:"):
            continue
        if link == _VM_LINK:
            vm_fds.append(fd)
        elif vcpu := VCPU_LINK.fullmatch(link):
            vcpu_fds[fd] = None if vcpu[1] is None else int(vcpu[1])
        elif link == _PERF_LINK:
            n_perf_events += 1
    if fds and not n_seen:  # CAP_DAC_READ_SEARCH lists them; reading needs CAP_SYS_PTRACE
        return None
    limits = (
        (len(fds), most, "descriptors"),
        (len(vm_fds), MOST_VMS, "descriptors of VMs"),
        (len(vcpu_fds), MOST_VCPUS, "descriptors of vCPUs"),
    )
    return Descriptors(
        pid,
        tuple(vm_fds[:MOST_VMS]),
        dict(list(vcpu_fds.items())[:MOST_VCPUS]),
        n_perf_events,
        tuple(
            f"it holds more than {most:,} {what}: only the first ones were checked"
            for n, most, what in limits
            if n > most
        ),
    )


def process_ids(files: HostFiles = HOST) -> list[int]:
    """The ids of all processes."""
    return sorted(int(name) for name in files.names("/proc") if _NUMBER.fullmatch(name))


def scan_processes(
    files: HostFiles = HOST, skip: Collection[int] = (), only: Collection[int] | None = None
) -> tuple[list[Descriptors], int]:
    """Read all processes except `skip`, by pid; also return the number of unreadable ones.

    This takes two system calls for each open descriptor on the host, up to the limits above.
    The time is bounded even for many processes with many descriptors: after SCAN_LIMIT_S only
    the first FEW_DESCRIPTORS of each process are read. With `only`, no other process is read.
    """
    found: list[Descriptors] = []
    unreadable = 0
    until_s = time.monotonic() + SCAN_LIMIT_S
    for pid in process_ids(files) if only is None else sorted(only):
        if pid in skip:
            continue
        late = time.monotonic() > until_s
        most = FEW_DESCRIPTORS if late else MOST_DESCRIPTORS
        descriptors = read_descriptors(pid, files, most)
        if descriptors is not None:
            found.append(descriptors)
        else:
            unreadable += _is_hidden(pid, files)
    return found, unreadable


def unlisted_processes(files: HostFiles = HOST) -> str | None:
    """Why /proc hides the processes of other users (mount option hidepid, proc(5)); or None."""
    for line in (files.text("/proc/self/mounts") or "").splitlines():
        _, where, kind, options, *_ = [*line.split(), "", "", "", ""]
        hidden = re.search(r"(?:^|,)hidepid=(2|4|invisible|ptraceable)(?:,|$)", options)
        if (where, kind) == ("/proc", "proc") and hidden:
            return f"/proc is mounted with hidepid={hidden[1]}, which hides other users' processes"
    return None


def _is_hidden(pid: int, files: HostFiles) -> bool:
    """Whether a process whose descriptors are unreadable may hold any.

    A process that has ended since, a zombie and a kernel thread do not.
    """
    if not files.exists(f"/proc/{pid}"):
        return False
    fields = (files.text(f"/proc/{pid}/stat") or "").rpartition(")")[2].split()
    if len(fields) <= _FLAGS or not _NUMBER.fullmatch(fields[_FLAGS]):
        return True
    return fields[0] not in "XZ" and not int(fields[_FLAGS]) & _PF_KTHREAD
