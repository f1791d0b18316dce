# SPDX-License-Identifier: Apache-2.0
"""The features that /dev/kvm reports, read without creating a VM."""

import fcntl
import os
import struct
from dataclasses import dataclass
from typing import Final

# include/uapi/linux/kvm.h
_CHECK_EXTENSION: Final = 0xAE03
_GET_SUPPORTED_CPUID: Final = 0xC008AE05
_CAP_TSC_CONTROL: Final = 60
_ENTRY: Final = struct.Struct("<7I12x")  # struct kvm_cpuid_entry2
_MAX_ENTRIES: Final = 256

# arch/x86/include/uapi/asm/kvm_para.h: leaf 0x40000001, EAX.
_FEATURES_LEAF: Final = 0x4000_0001
_FEATURE_PV_SEND_IPI: Final = 11


@dataclass(frozen=True)
class KvmFeatures:
    """The features that KVM offers to guests. A VMM may withhold them from a guest."""

    pv_send_ipi: bool
    """Multicast IPIs by hypercall: 4180bf1b655a, "KVM: X86: Implement "send IPI" hypercall"."""
    tsc_scaling: bool
    """A guest's TSC may run at another rate than the host's (KVM_CAP_TSC_CONTROL)."""


def read_kvm_features(path: str = "/dev/kvm") -> KvmFeatures:
    """Query KVM. Raises OSError if it cannot be opened or a query fails."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        scaling = fcntl.ioctl(fd, _CHECK_EXTENSION, _CAP_TSC_CONTROL) > 0
        cpuid = bytearray(8 + _MAX_ENTRIES * _ENTRY.size)
        struct.pack_into("<I", cpuid, 0, _MAX_ENTRIES)
        fcntl.ioctl(fd, _GET_SUPPORTED_CPUID, cpuid, True)  # noqa: FBT003
    finally:
        os.close(fd)
    n_entries = struct.unpack_from("<I", cpuid)[0]
    entries = (_ENTRY.unpack_from(cpuid, 8 + i * _ENTRY.size) for i in range(n_entries))
    features = next((entry[3] for entry in entries if entry[0] == _FEATURES_LEAF), 0)
    return KvmFeatures(bool(features >> _FEATURE_PV_SEND_IPI & 1), scaling)
