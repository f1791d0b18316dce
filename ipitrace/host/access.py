# SPDX-License-Identifier: Apache-2.0
"""Checks of privileges and devices. A failed check reports what is missing and what to do."""

import contextlib
import errno
import fcntl
import grp
import os
import platform
import pwd
import re
import resource
import stat
from pathlib import Path
from typing import Final

from ipitrace.base.errors import HostError
from ipitrace.host.files import HOST, HostFiles

# include/uapi/linux/kvm.h: _IO(KVMIO, 0x00), stable at 12 since 2.6.22.
_KVM_GET_API_VERSION: Final = 0xAE00
_KVM_API_VERSION: Final = 12

# include/uapi/linux/capability.h. CAP_PERFMON and CAP_BPF were split off CAP_SYS_ADMIN in
# 5.8; a kernel without them never grants them, so the kernel version need not be checked.
_CAP_DAC_OVERRIDE: Final = 1 << 1
_CAP_DAC_READ_SEARCH: Final = 1 << 2
_CAP_SYS_PTRACE: Final = 1 << 19
_CAP_SYS_ADMIN: Final = 1 << 21
_CAP_SYS_NICE: Final = 1 << 23
_CAP_PERFMON: Final = 1 << 38
_CAP_BPF: Final = 1 << 39

# The first namespaces' fixed inode numbers (PROC_PID_INIT_INO and PROC_USER_INIT_INO in
# include/linux/proc_ns.h).
_INITIAL_PID_NAMESPACE: Final = "pid:[4026531836]"
_INITIAL_USER_NAMESPACE: Final = "user:[4026531837]"

_GROUP_MAY: Final = stat.S_IRGRP | stat.S_IWGRP
_OTHERS_MAY: Final = stat.S_IROTH | stat.S_IWOTH
_ROOT_LACKS: Final = "Root does not have them here: run it outside of the container"
_FEWEST_DESCRIPTORS: Final = 64  # a traced run of two vCPUs opens 40

NO_TRACE: Final = "--no-trace measures without tracing the host"
"""The alternative that the command 'run' has; see `otherwise` below."""


def require_kvm(path: str = "/dev/kvm", files: HostFiles = HOST) -> None:
    """Open `path` and check its KVM API version. Raises HostError if that fails."""
    machine = platform.machine()
    if machine != "x86_64":
        raise HostError(
            f"This machine is {machine}; IPIs of x86 guests can only be measured on x86_64.",
            "Run ipitrace on an x86_64 host.",
        )
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise _kvm_open_error(path, error, files) from error
    try:
        version = fcntl.ioctl(fd, _KVM_GET_API_VERSION)
    except OSError as error:
        raise HostError(
            f"{path} is not the KVM device ({error.strerror}).",
            "Give the path of the KVM device, usually /dev/kvm.",
        ) from error
    finally:
        os.close(fd)
    if version != _KVM_API_VERSION:
        raise HostError(
            f"{path} has KVM API version {version}, not {_KVM_API_VERSION}.",
            "Use a kernel with the standard KVM interface.",
        )


def require_descriptors() -> None:
    """Raise HostError if this process may open too few files to read the host's state completely.

    A file of /proc that cannot be opened is reported as missing (HostFiles).
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and limit < _FEWEST_DESCRIPTORS:
        raise HostError(
            f"This process may open only {limit} files; ipitrace needs {_FEWEST_DESCRIPTORS}.",
            "Raise 'ulimit -n'.",
        )


def allow_many_descriptors() -> None:
    """Raise the limit of open files to the hard limit.

    The soft limit is low because select(2) does not support descriptors above 1023
    (getrlimit(2)). poll(2) has no such limit.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # above fs.nr_open
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def require_trace_privilege(files: HostFiles = HOST, *, otherwise: str = "") -> None:
    """Raise HostError unless this process may attach BPF programs that read the kernel.

    This needs CAP_SYS_ADMIN, or CAP_BPF and CAP_PERFMON where the kernel has them, in the
    initial user namespace, and no lockdown=confidentiality (it refuses BPF's kernel reads,
    kprobes and perf: enum lockdown_reason in include/linux/security.h). `otherwise` is the last
    part of the hint: what the calling command can do without tracing.
    """
    held = _effective_capabilities(files)
    needed = {"CAP_BPF": _CAP_BPF, "CAP_PERFMON": _CAP_PERFMON}
    missing = [name for name, bit in needed.items() if not held & (bit | _CAP_SYS_ADMIN)]
    if missing:
        raise HostError(
            "Tracing the host needs root, or the capabilities CAP_BPF and CAP_PERFMON; "
            f"missing: {' and '.join(missing)}.",
            _ended("Run it with sudo" if os.geteuid() else _ROOT_LACKS, otherwise),
        )
    namespace = files.link("/proc/self/ns/user")
    if namespace not in (None, _INITIAL_USER_NAMESPACE):
        raise HostError(
            "Tracing needs privileges on the host; root in a user namespace has none there.",
            _ended("Run it on the host, or in a container that is not rootless", otherwise),
        )
    if read_lockdown(files) == "confidentiality":
        raise HostError(
            "The kernel is locked down (confidentiality) and does not allow tracing.",
            _ended("Boot with lockdown=integrity or none", otherwise),
        )


def require_initial_pid_namespace(files: HostFiles = HOST, *, otherwise: str = "") -> None:
    """Raise HostError in a pid namespace: BPF reports the ids of the initial namespace.

    A missing /proc/self/ns/pid means a kernel without pid namespaces, which is supported.
    """
    if files.link("/proc/self/ns/pid") not in (None, _INITIAL_PID_NAMESPACE):
        raise HostError(
            "This process is in a pid namespace, where thread ids differ from those BPF reports.",
            _ended("Run it on the host, or in a container started with --pid=host", otherwise),
        )


def missing_to_look_into_processes(files: HostFiles = HOST) -> tuple[str, ...]:
    """The missing capabilities for reading the descriptors of any process.

    Only the owner may list /proc/PID/fd (proc_fd_permission() in fs/proc/fd.c). Its links can be
    read only with the right to trace the process (proc_fd_access_allowed(), ptrace(2)).
    """
    held = _effective_capabilities(files)
    missing = [] if held & _CAP_SYS_PTRACE else ["CAP_SYS_PTRACE"]
    if not held & (_CAP_DAC_READ_SEARCH | _CAP_DAC_OVERRIDE):
        missing.append("CAP_DAC_READ_SEARCH")
    return tuple(missing)


def missing_to_preempt(files: HostFiles = HOST) -> tuple[str, ...]:
    """The missing capabilities for starting a process that preempts our vCPUs.

    The process needs a real-time priority (CAP_SYS_NICE, sched(7)) and access to the guest's
    memory (CAP_SYS_ADMIN, proc_pid_map_files(5)).
    """
    held = _effective_capabilities(files)
    needed = {"CAP_SYS_NICE": _CAP_SYS_NICE, "CAP_SYS_ADMIN": _CAP_SYS_ADMIN}
    return tuple(name for name, bit in needed.items() if not held & bit)


def may_mount(files: HostFiles = HOST) -> bool:
    """Whether this process may mount file systems in its own namespace (unshare(2), mount(2))."""
    return bool(_effective_capabilities(files) & _CAP_SYS_ADMIN)


def read_lockdown(files: HostFiles = HOST) -> str | None:
    """The kernel's lockdown state: "none", "integrity" or "confidentiality".

    None if it cannot be read: no lockdown LSM, or securityfs is not mounted.
    """
    match = re.search(r"\[(\w+)\]", files.text("/sys/kernel/security/lockdown") or "")
    return match[1] if match else None


def _effective_capabilities(files: HostFiles) -> int:
    """This process's effective capability bits; 0 if they cannot be read."""
    match = re.search(
        r"^CapEff:\s*([0-9a-f]+)$", files.text("/proc/self/status") or "", re.MULTILINE
    )
    return int(match[1], 16) if match else 0


def _kvm_open_error(path: str, error: OSError, files: HostFiles) -> HostError:
    if error.errno in (errno.EACCES, errno.EPERM):
        return HostError(f"No permission to open {path}.", how_to_open(path))
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return HostError(
            f"KVM is not available ({path}: {error.strerror}).", _how_to_get_kvm(files)
        )
    return HostError(
        f"{path} cannot be opened ({error.strerror}).",
        "See the kernel log: dmesg | grep -i kvm",
    )


def _ended(hint: str, otherwise: str) -> str:
    return f"{hint}; {otherwise}." if otherwise else f"{hint}."


def how_to_open(path: str) -> str:
    """A hint for a user without access to a device, from the device's owner and mode."""
    try:
        found = Path(path).stat()
    except OSError:
        return "Run it with sudo."
    mode, gid = stat.S_IMODE(found.st_mode), found.st_gid
    of_group = mode & _GROUP_MAY == _GROUP_MAY
    ours = of_group and gid in {os.getegid(), *os.getgroups()}
    if not os.geteuid() or ours or mode & _OTHERS_MAY == _OTHERS_MAY:
        return (
            f"The mode of {path} ({mode:04o}) allows access: check the device rules of the "
            "container and the security module."
        )
    if not of_group or not gid:  # joining root's group is not recommended
        return f"Run it with sudo: {path} has mode {mode:04o} and belongs to {_names(found)}."
    group = _name_of_group(gid)
    if group is None:
        return f"Run it with sudo: {path} belongs to group {gid}, which has no name here."
    return (
        f"Run it with sudo, or join the group of {path}: sudo usermod -aG {group} $USER, then "
        "log in again."
    )


def _names(found: os.stat_result) -> str:
    """User and group: "root:root"."""
    try:
        user = pwd.getpwuid(found.st_uid).pw_name
    except KeyError:
        user = str(found.st_uid)
    return f"{user}:{_name_of_group(found.st_gid) or found.st_gid}"


def _name_of_group(gid: int) -> str | None:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return None


def _how_to_get_kvm(files: HostFiles) -> str:
    """A hint on how to enable KVM on this CPU: load the module, or enable virtualization."""
    match = re.search(r"^flags\s*:(.*)$", files.text("/proc/cpuinfo") or "", re.MULTILINE)
    flags = match[1].split() if match else []
    if "vmx" in flags:
        return "Load the module: sudo modprobe kvm_intel"
    if "svm" in flags:
        return "Load the module: sudo modprobe kvm_amd"
    if "hypervisor" in flags:
        return (
            "This host is itself a guest: enable nested virtualization on its hypervisor, "
            "then modprobe kvm_intel or kvm_amd."
        )
    return "Enable VT-x or AMD-V in the firmware, then modprobe kvm_intel or kvm_amd."
