# SPDX-License-Identifier: Apache-2.0
"""The guest's APIC mode, from the page that KVM shares with the VMM.

Whenever KVM_RUN returns, KVM writes the vCPU's IA32_APIC_BASE to kvm_run.apic_base
(post_kvm_run_save() in arch/x86/kvm/x86.c). The page is mapped, read-only, for an instant:
through a copy of the VMM's descriptor, which is closed again at once. The VMM may have put
another file there since its descriptors were listed, and one that it cuts short would end
us by SIGBUS; so the copy, which it cannot change, is mapped only if it is a vCPU.
"""

import ctypes
import mmap
import os
import struct
from collections.abc import Collection
from typing import Final

from ipitrace.host.descriptors import VCPU_LINK
from ipitrace.vm.model import ApicMode

_SYS_PIDFD_GETFD: Final = 438  # arch/x86/entry/syscalls/syscall_64.tbl, Linux 5.6
_APIC_BASE: Final = 24  # offset of apic_base in struct kvm_run, include/uapi/linux/kvm.h
_ENABLED: Final = 1 << 11  # IA32_APIC_BASE, SDM vol. 3A, 11.4.4 and 11.12.1
_X2APIC: Final = 1 << 10


def mode_of(apic_bases: Collection[int]) -> ApicMode | None:
    """The guest's mode from its vCPUs' IA32_APIC_BASE; 0 is one not stated yet.

    The values may be old, but a vCPU leaves x2APIC mode only by switching its APIC off
    (SDM vol. 3A, 11.12.5): one in that mode decides.
    """
    stated = [base for base in apic_bases if base]
    if not stated:
        return None
    if any(base & _ENABLED and base & _X2APIC for base in stated):
        return "x2apic"
    return "xapic" if any(base & _ENABLED for base in stated) else "off"


def read_apic_mode(pid: int, vcpu_fds: Collection[int]) -> tuple[ApicMode | None, str]:
    """The mode and, when it is None, why it is not known."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError as error:
        return None, f"the process cannot be opened ({error.strerror})"
    try:
        mode = mode_of([_apic_base(pidfd, fd) for fd in vcpu_fds])
    except OSError as error:
        return None, f"the vCPUs' pages cannot be read ({error.strerror or error})"
    finally:
        os.close(pidfd)
    return mode, "" if mode else "no vCPU has returned to its VMM yet"


def _apic_base(pidfd: int, fd: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    copy: int = libc.syscall(_SYS_PIDFD_GETFD, pidfd, fd, 0)
    if copy < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    try:
        link = os.readlink(f"/proc/self/fd/{copy}")  # noqa: PTH115 - no path, a name
        if not VCPU_LINK.fullmatch(link):
            raise OSError(f"descriptor {fd} is no vCPU any more")
        with mmap.mmap(copy, mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ) as page:
            return int(struct.unpack_from("<Q", page, _APIC_BASE)[0])
    finally:
        os.close(copy)
