# SPDX-License-Identifier: Apache-2.0
"""The guest's APIC mode, from the page that KVM shares with the VMM.

When KVM_RUN returns, KVM writes the vCPU's IA32_APIC_BASE to kvm_run.apic_base
(post_kvm_run_save() in arch/x86/kvm/x86.c). The page is mapped read-only for a moment, through a
copy of the VMM's descriptor that is closed immediately afterwards. The VMM may have replaced the
descriptor by another file since its descriptors were listed, and a file that it truncates would
end us by SIGBUS. The copy, which the VMM cannot change, is therefore mapped only if it is a vCPU.
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
    """The guest's mode from its vCPUs' IA32_APIC_BASE; 0 means not written yet.

    The values may be old, but a vCPU leaves x2APIC mode only by disabling its APIC (SDM vol. 3A,
    11.12.5): one vCPU in x2APIC mode decides.
    """
    written = [base for base in apic_bases if base]
    if not written:
        return None
    if any(base & _ENABLED and base & _X2APIC for base in written):
        return "x2apic"
    return "xapic" if any(base & _ENABLED for base in written) else "off"


def read_apic_mode(pid: int, vcpu_fds: Collection[int]) -> tuple[ApicMode | None, str]:
    """The mode and, if it is None, the reason why it is unknown."""
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
        link = os.readlink(f"/proc/self/fd/{copy}")  # noqa: PTH115 - the link is a name, not a path
        if not VCPU_LINK.fullmatch(link):
            raise OSError(f"descriptor {fd} is no longer a vCPU")
        with mmap.mmap(copy, mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ) as page:
            return int(struct.unpack_from("<Q", page, _APIC_BASE)[0])
    finally:
        os.close(copy)
