# SPDX-License-Identifier: Apache-2.0
"""Limits on the size and duration of a guest's output; the guest is not trusted.

Each limit is well above what a correct guest needs, and is checked before memory is allocated
for the output. If a size follows from the request (a storm's records), so does the limit: see
storm_bytes().
"""

from typing import Final

from ipitrace.abi.storm import FILE, RECEIPT, SEND
from ipitrace.base.units import MIB

TEXT_BYTES: Final = 16 * MIB
"""The output of a program in a guest, unless another limit is given: /proc/cpuinfo has some
1,500 bytes for each of 4,096 CPUs."""

STDERR_BYTES: Final = 256 << 10
"""The part of a program's stderr that is read; it contains a build's first errors."""

STORM_BYTES: Final = 128 * MIB
"""The records of one storm: three copies of them and the rest of ipitrace stay under 512 MiB."""

TRANSFER_S: Final = 60.0
"""The time to transfer a program's output: 128 MiB at some 2 MiB a second."""

HEADER_BYTES: Final = 4096
"""A storm file's header: a later helper's may be longer than the present 192 bytes."""

GUEST_CPUS: Final = 4096
"""KVM's limit on x86: the maximum of CONFIG_KVM_MAX_NR_VCPUS in arch/x86/kvm/Kconfig."""

APIC_ID: Final = 0xFFFF_FFFF
"""The largest APIC id: x2APIC ids have 32 bits (Intel SDM vol. 3A, 11.12)."""

TSC_KHZ: Final = (1_000, 10_000_000)
"""1 MHz to 10 GHz: includes the TSCs of emulators and of all existing CPUs."""

FASTEST_TSC_HZ: Final = 5e9
"""Used where no TSC rate is known: times are then too long, not too short."""

VECTORS: Final = (16, 255)
"""The vectors that an APIC can send (Intel SDM vol. 3A, 11.5.2)."""

STATUS_CHARS: Final = 256
"""A text in the helper's status; the helper limits what it reads of a file to the same size."""

STATUS_REASONS: Final = 64
"""Reasons in the helper's status for unsupported items: 14 patterns, states and methods."""

ANSWER_BYTES: Final = 2 * MIB
"""One answer of a guest agent: PIECE_BYTES in base64, and the JSON around it."""

PIECE_BYTES: Final = MIB
"""The part of a file that is read at once; its base64 is well below libvirt's limit of 4 MiB."""

ANSWER_S: Final = 20.0
"""The time for one answer of a guest agent, also of a busy guest under emulation."""

ASIDE_LINES: Final = 1_000
"""Messages of an agent, during one request, that do not answer it: answers to other clients'
requests that were still in progress. The agent has no events (QEMU's qga/qapi-schema.json)."""

ASIDE_BYTES: Final = 8 * MIB
"""Likewise, in bytes."""

STORM_S: Final = 600.0
"""A storm's time besides its pace; ipitrace_storm ends a storm after the same time
(STORM_MAX_SECONDS)."""


def storm_bytes(sends: int, senders: int, targets: int, n_vcpus: int) -> int:
    """The largest possible size of a storm file.

    Args:
        sends: the requested sends of each sender, including the warm-up.
        senders: CPUs that send.
        targets: CPUs that handle IPIs; of each sender, or of a ring together.
        n_vcpus: CPUs of the guest.
    """
    records = sends * (senders * SEND.itemsize + targets * RECEIPT.itemsize)
    return max(HEADER_BYTES, FILE.itemsize) + 8 * n_vcpus + records
