# SPDX-License-Identifier: Apache-2.0
"""What the micro-guest's CPUID returns."""

import struct
from collections.abc import Mapping

from ipitrace.storm.micro.kvm import _CPUID_ENTRY, _cpuid_of, _with_hyperv

KVM_FEATURES = 0x4000_0001


def table(leaves: Mapping[int, int]) -> bytes:
    """A struct kvm_cpuid2 with EAX of each leaf."""
    entries = [_CPUID_ENTRY.pack(leaf, 0, 0, eax, 0, 0, 0) for leaf, eax in leaves.items()]
    # KVM returns a buffer that is larger than what it filled
    return struct.pack("<II", len(entries), 0) + b"".join(entries) + bytes(80)


def leaves(cpuid: bytes) -> list[tuple[int, int]]:
    (count,) = struct.unpack_from("<I", cpuid)
    rows = [_CPUID_ENTRY.unpack_from(cpuid, 8 + i * _CPUID_ENTRY.size) for i in range(count)]
    assert len(cpuid) >= 8 + count * _CPUID_ENTRY.size
    return [(row[0], row[3]) for row in rows]


def test_hyperv_takes_the_place_of_kvm() -> None:
    kvm = table({0: 13, 0x4000_0000: 1, KVM_FEATURES: 2, 0x4000_0100: 3, 0x8000_0000: 4})
    hyperv = table({0x4000_0000: 5, 0x4000_0001: 6, 0x4000_0005: 7})
    assert leaves(_with_hyperv(kvm, hyperv)) == [
        (0, 13),
        (0x8000_0000, 4),
        (0x4000_0000, 5),
        (0x4000_0001, 6),
        (0x4000_0005, 7),
    ]


def test_features_are_added_to_kvms_leaf() -> None:
    kvm = table({0: 13, KVM_FEATURES: 2})
    assert leaves(_cpuid_of(kvm, 3, 1 << 30)) == [(0, 13), (KVM_FEATURES, 1 << 30 | 2)]
