# SPDX-License-Identifier: Apache-2.0
"""Passthrough IPI's part of the KVM interface, which only patched kernels have.

Its definition is the series in lab/kernel/patches; KVM_CHECK_EXTENSION says whether
this host has it and would give it to us.
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
"""struct mg_foreign: the ICR's low half, an APIC id, how often to write them, and which ICR."""


@cache
def why_unsupported() -> str | None:
    """Why this host gives a guest no descriptors to send through; None where it does."""
    try:
        fd = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return "the host offers no descriptors to send through"
    try:
        offered = fcntl.ioctl(fd, _CHECK_EXTENSION, CAP_X86_PASSTHROUGH_IPI) > 0
    except OSError:
        offered = False
    finally:
        os.close(fd)
    return None if offered else "the host offers no descriptors to send through"
