# SPDX-License-Identifier: Apache-2.0
"""How much a guest may say, and for how long; it may be anybody's.

Each limit lies well above what a sound guest needs, and is checked before memory is taken
for what was said. Where a figure follows from the request (a storm's records), so does its
limit: see storm_bytes().
"""

from typing import Final

from ipitrace.abi.storm import (
    FILE,
    RECEIPT,
    SEND,
)
from ipitrace.base.units import MIB

TEXT_BYTES: Final = 16 * MIB
"""What a program in a guest may print, unless more was asked for: /proc/cpuinfo has some
1,500 bytes for each of 4,096 CPUs."""

STDERR_BYTES: Final = 256 << 10
"""What of a program's stderr is read; a build's first errors are in it."""

STORM_BYTES: Final = 128 * MIB
"""The records of one storm: three copies of them and the rest of ipitrace stay under 512 MiB."""

TRANSFER_S: Final = 60.0
"""For what a program printed to come over: 128 MiB at some 2 MiB a second."""

HEADER_BYTES: Final = 4096
"""A storm file's header: a later helper's may be longer than ours of 192 bytes."""

GUEST_CPUS: Final = 4096
"""KVM's own limit on x86: CONFIG_KVM_MAX_NR_VCPUS of arch/x86/kvm/Kconfig ends there."""

APIC_ID: Final = 0xFFFF_FFFF
"""The largest: x2APIC ids have 32 bits (Intel SDM vol. 3A, 11.12)."""

TSC_KHZ: Final = (1_000, 10_000_000)
"""1 MHz to 10 GHz: the emulators' TSCs, and all that is built."""

FASTEST_TSC_HZ: Final = 5e9
"""Used where no TSC rate is known: times are then too long, not too short."""

VECTORS: Final = (16, 255)
"""What an APIC sends (Intel SDM vol. 3A, 11.5.2)."""

STATUS_CHARS: Final = 256
"""A text in the helper's status; it reads as much of a file itself."""

STATUS_REASONS: Final = 64
"""What a guest may say it cannot do; there are 14 patterns, states and methods."""

ANSWER_BYTES: Final = 2 * MIB
"""One answer of a guest agent: PIECE_BYTES in base64, and the words around it."""

PIECE_BYTES: Final = MIB
"""Of a file, read at once; its base64 is well below libvirt's limit of 4 MiB."""

ANSWER_S: Final = 20.0
"""For one answer of a guest agent; a busy guest under emulation, too."""

ASIDE_LINES: Final = 1_000
"""What an agent may send that answers no question of ours, while it answers one: others'
answers that were under way. It knows no events (QEMU's qga/qapi-schema.json)."""

ASIDE_BYTES: Final = 8 * MIB
"""Likewise, in bytes."""

STORM_S: Final = 600.0
"""A storm's time besides its pace; ipistorm ends one after as long (STORM_MAX_SECONDS)."""


def storm_bytes(sends: int, targets: int, n_vcpus: int) -> int:
    """The most that a storm file can have.

    Args:
        sends: that were asked for, warm-up included.
        targets: CPUs that handle each of them.
        n_vcpus: CPUs of the guest.
    """
    records = sends * (SEND.itemsize + targets * RECEIPT.itemsize)
    return max(HEADER_BYTES, FILE.itemsize) + 8 * n_vcpus + records
