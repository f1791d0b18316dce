# SPDX-License-Identifier: Apache-2.0
"""A process's threads, and which of them runs which vCPU, from /proc/PID/task/TID/syscall.

Descriptors belong to the process, so they do not tell. A thread that waits inside the
ioctl KVM_RUN shows the system call's number and arguments there, and the first argument
is the vCPU's descriptor. One that runs shows only "running", so several looks are taken.
"""

import re
import time
from collections.abc import Collection, Mapping
from typing import Final

from ipitrace.host.files import HOST, HostFiles, parse_cpu_list

LOOKS: Final = 20
LOOK_INTERVAL_S: Final = 0.005

_IOCTL: Final = 16  # arch/x86/entry/syscalls/syscall_64.tbl
_KVM_RUN: Final = 0xAE80  # include/uapi/linux/kvm.h
_STARTTIME: Final = 18  # fields after the state, proc_pid_stat(5)
_FIELDS: Final = 9  # number, six arguments, stack pointer, program counter


def thread_ids(pid: int, files: HostFiles = HOST) -> tuple[int, ...]:
    """The process's threads; () when it is gone."""
    return tuple(sorted(int(n) for n in files.names(f"/proc/{pid}/task") if n.isdecimal()))


def read_started_at(pid: int, files: HostFiles = HOST) -> int | None:
    """starttime of /proc/PID/stat (clock ticks since boot); None when the process has ended."""
    # The second field, the name, may hold spaces and parentheses.
    state, *rest = (files.text(f"/proc/{pid}/stat") or "").rpartition(")")[2].split() or ("X",)
    return None if state in ("X", "Z") else int(rest[_STARTTIME])


def allowed_cpus(pid: int, tid: int, files: HostFiles = HOST) -> tuple[int, ...]:
    """The CPUs a thread may run on; () when it is gone."""
    status = files.text(f"/proc/{pid}/task/{tid}/status") or ""
    match = re.search(r"^Cpus_allowed_list:(.*)$", status, re.MULTILINE)
    return parse_cpu_list(match[1]) if match else ()


def kvm_run_fd(syscall: str | None) -> int | None:
    """The vCPU's descriptor, if the thread with this /proc/.../syscall is inside KVM_RUN.

    KVM's own worker (kvm-nx-lpage-recovery) is a kernel thread copied from the vCPU
    thread that started it, stale arguments included; it has no user stack and program
    counter, and those read as 0.
    """
    fields = (syscall or "").split()
    if len(fields) != _FIELDS or fields[0] != str(_IOCTL):
        return None
    fd, request, stack, program = (int(fields[i], 16) for i in (1, 2, 7, 8))
    return fd if request == _KVM_RUN and stack and program else None


def find_in_kvm_run(
    wanted: Mapping[int, Collection[int]], files: HostFiles = HOST
) -> dict[int, dict[int, int]]:
    """Look for threads in KVM_RUN until each is found, at most LOOKS times.

    Args:
        wanted: the vCPU descriptors looked for, by process.
        files: where to look.

    Returns:
        For each process, thread by descriptor, as far as they were found.
    """
    found: dict[int, dict[int, int]] = {pid: {} for pid in wanted}
    for look in range(LOOKS):
        if look:
            time.sleep(LOOK_INTERVAL_S)
        for pid, fds in wanted.items():
            missing = set(fds) - found[pid].keys()
            if not missing:
                continue
            for tid in thread_ids(pid, files):
                fd = kvm_run_fd(files.text(f"/proc/{pid}/task/{tid}/syscall"))
                if fd in missing:
                    found[pid][fd] = tid
        if all(set(fds) <= found[pid].keys() for pid, fds in wanted.items()):
            break
    return found
