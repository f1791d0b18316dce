# SPDX-License-Identifier: Apache-2.0
"""The KVM interface of passthrough IPIs, which only patched kernels have.

It is defined by the patches in lab/kernel/patches. KVM_CHECK_EXTENSION reports whether this host
has it and allows it to this process.
"""

import fcntl
import os
import struct
from functools import cache
from typing import Final

CAP_X86_PASSTHROUGH_IPI: Final = 0x50490000
KVM_CPUID_FEATURES: Final = 0x40000001
KVM_FEATURE_PASSTHROUGH_IPI: Final = 30
_CHECK_EXTENSION: Final = 0xAE03

FOREIGN: Final = struct.Struct("<4I")
"""struct mg_foreign: the ICR's low half, an APIC id, the number of writes, and the ICR to use."""


@cache
def why_unsupported() -> str | None:
    """Why no guest of this host can send by descriptors, as far as is known; None if one can."""
    try:
        fd = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return (
            "it is unknown whether the host offers posted-interrupt descriptors for sending: "
            f"/dev/kvm cannot be opened ({error.strerror})"
        )
    try:
        offered = fcntl.ioctl(fd, _CHECK_EXTENSION, CAP_X86_PASSTHROUGH_IPI) > 0
    except OSError:
        offered = False
    finally:
        os.close(fd)
    return None if offered else "the host offers no posted-interrupt descriptors for sending"
