# SPDX-License-Identifier: Apache-2.0
"""A process's threads, and the vCPU that each thread runs, from /proc/PID/task/TID/syscall.

Descriptors belong to the process, not to a thread. For a thread that waits in the ioctl KVM_RUN,
the file shows the system call's number and arguments; the first argument is the vCPU's
descriptor. For a running thread it shows only "running", so the file is read several times.
"""

import re
import time
from collections.abc import Collection, Mapping
from typing import Final

from ipitrace.host.files import HOST, HostFiles, parse_cpu_list

ATTEMPTS: Final = 20
ATTEMPT_INTERVAL_S: Final = 0.005
ATTEMPTS_LIMIT_S: Final = 5.0  # for all reads of all processes; those with few threads come first
MOST_THREADS: Final = 1 << 13  # of one process: twice the most vCPUs of a VM

_TID: Final = re.compile(r"[0-9]{1,10}")
_IOCTL: Final = 16  # arch/x86/entry/syscalls/syscall_64.tbl
_KVM_RUN: Final = 0xAE80  # include/uapi/linux/kvm.h
_STARTTIME: Final = 18  # fields after the state, proc_pid_stat(5)
_FIELDS: Final = 9  # number, six arguments, stack pointer, program counter


def thread_ids(pid: int, files: HostFiles = HOST) -> tuple[int, ...]:
    """The process's threads, at most the first MOST_THREADS; () if it has ended."""
    names = files.listing(f"/proc/{pid}/task", MOST_THREADS) or ()
    return tuple(sorted(int(name) for name in names if _TID.fullmatch(name)))


def read_started_at(pid: int, files: HostFiles = HOST) -> int | None:
    """starttime of /proc/PID/stat (clock ticks since boot); None if the process has ended.

    `pid` may also be a thread, which has a directory in /proc that is not listed.
    """
    # The second field, the name, may contain spaces and parentheses.
    state, *fields = (files.text(f"/proc/{pid}/stat") or "").rpartition(")")[2].split() or ("X",)
    try:
        return None if state in ("X", "Z") else int(fields[_STARTTIME])
    except (IndexError, ValueError):
        return None


def read_uid(pid: int, files: HostFiles = HOST) -> int | None:
    """The process's effective user id (Uid: of proc_pid_status(5)); None if it has ended.

    The process's name, on an earlier line, cannot forge it: the kernel escapes line breaks there.
    """
    status = files.text(f"/proc/{pid}/status") or ""
    match = re.search(r"^Uid:\s+[0-9]+\s+([0-9]{1,10})\s", status, re.MULTILINE)
    return int(match[1]) if match else None


def process_of(tid: int, files: HostFiles = HOST) -> int | None:
    """The process that thread `tid` belongs to; None if it has ended."""
    status = files.text(f"/proc/{tid}/status") or ""
    match = re.search(r"^Tgid:\s+([0-9]{1,10})$", status, re.MULTILINE)
    return int(match[1]) if match else None


def allowed_cpus(pid: int, tid: int, files: HostFiles = HOST) -> tuple[int, ...]:
    """The CPUs that a thread may run on; () if it has ended."""
    status = files.text(f"/proc/{pid}/task/{tid}/status") or ""
    match = re.search(r"^Cpus_allowed_list:(.*)$", status, re.MULTILINE)
    try:
        return parse_cpu_list(match[1]) if match else ()
    except ValueError:
        return ()


def kvm_run_fd(syscall: str | None) -> int | None:
    """The vCPU's descriptor, if the thread with this /proc/.../syscall is inside KVM_RUN.

    KVM's own worker (kvm-nx-lpage-recovery) is a kernel thread that was copied from the vCPU
    thread that started it, including old arguments. It has no user stack and no user program
    counter; both read as 0.
    """
    fields = (syscall or "").split()
    if len(fields) != _FIELDS or fields[0] != str(_IOCTL):
        return None
    try:
        fd, request, stack, program = (int(fields[i], 16) for i in (1, 2, 7, 8))
    except ValueError:
        return None
    return fd if request == _KVM_RUN and stack and program else None


def find_in_kvm_run(
    wanted: Mapping[int, Collection[int]], files: HostFiles = HOST
) -> dict[int, dict[int, int]]:
    """Read threads until each one in KVM_RUN is found, at most ATTEMPTS times and ATTEMPTS_LIMIT_S.

    Args:
        wanted: the vCPU descriptors to find, by process.
        files: the kernel files to read.

    Returns:
        For each process, the thread by descriptor, for those that were found.
    """
    found: dict[int, dict[int, int]] = {pid: {} for pid in wanted}
    threads = {pid: thread_ids(pid, files) for pid in wanted}
    # Processes with thousands of threads are read last.
    order = sorted(wanted, key=lambda pid: len(threads[pid]))
    until_s = time.monotonic() + ATTEMPTS_LIMIT_S
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(ATTEMPT_INTERVAL_S)
        for pid in order:
            missing = set(wanted[pid]) - found[pid].keys()
            if not missing:
                continue
            if time.monotonic() > until_s:
                return found
            for tid in threads[pid]:
                fd = kvm_run_fd(files.text(f"/proc/{pid}/task/{tid}/syscall"))
                if fd in missing:
                    found[pid][fd] = tid
        if all(set(fds) <= found[pid].keys() for pid, fds in wanted.items()):
            break
    return found
