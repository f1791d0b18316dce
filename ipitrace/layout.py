# SPDX-License-Identifier: Apache-2.0
"""NumPy's view of bpf/ipitrace_events.h and ipitrace_watch.h; tests/contract compares them."""

from enum import IntEnum
from typing import Final

import numpy as np


class Kind(IntEnum):
    """`enum ipitrace_kind`: what a host event is; the header says what its words hold."""

    KVM_EXIT = 0
    KVM_ENTRY = 1
    KVM_APIC_IPI = 2
    KVM_APIC_ACCEPT_IRQ = 3
    KVM_APICV_ACCEPT_IRQ = 4
    KVM_EOI = 5
    KVM_PV_EOI = 6
    KVM_MSR = 7
    KVM_APIC = 8
    KVM_HYPERCALL = 9
    KVM_INJ_VIRQ = 10
    KVM_VCPU_WAKEUP = 11
    KVM_EMULATE_INSN = 12
    KVM_AVIC_INCOMPLETE_IPI = 13
    KVM_AVIC_KICK_VCPU_SLOWPATH = 14
    KVM_AVIC_DOORBELL = 15
    KVM_APICV_INHIBIT_CHANGED = 16
    KVM_WRITE_TSC_OFFSET = 17
    KVM_PI_IRTE_UPDATE = 18
    RESCHEDULE_ENTRY = 19
    CALL_FUNCTION_ENTRY = 20
    CALL_FUNCTION_SINGLE_ENTRY = 21
    IPI_SEND_CPU = 22
    SCHED_SWITCH = 23
    PI_WAKEUP_HANDLER = 24
    SYSVEC_KVM_POSTED_INTR_WAKEUP_IPI = 25
    SMP_KVM_POSTED_INTR_IPI = 26
    VMX_DELIVER_INTERRUPT = 27
    VMX_DELIVER_POSTED_INTERRUPT = 28
    HANDLE_FASTPATH_SET_MSR_IRQOFF = 29
    HANDLE_FASTPATH_WRMSR = 30
    HANDLE_FASTPATH_WRMSR_IMM = 31


NR_KINDS: Final = len(Kind)

# `struct ipitrace_event`, one slot of a ring.
RING_EVENT: Final = np.dtype(
    [("ts_ns", "u8"), ("arg", "u8"), ("word", "u4"), ("cpu", "u2"), ("detail", "u2")]
)

# `struct ipitrace_head`, one cache line.
RING_HEAD: Final = np.dtype(
    [
        ("written", "u8"),
        ("counted", "u8"),
        ("missed", "u8"),
        ("busy", "u8"),
        ("elsewhere", "u8"),
        ("count_only", "u8"),
        ("pad", "u8", (2,)),
    ]
)

# A ring's record once it has left its ring, with what its ring said about it.
HOST_EVENT: Final = np.dtype([*RING_EVENT.descr, ("vcpu", "u2"), ("kind", "u1")], align=True)


class What(IntEnum):
    """`enum ipitrace_watch_what`: what a counting program's cell counts."""

    IPI = 1
    OTHER = 2
    EXIT = 3
    CPU = 4


NR_WHATS: Final = 5  # including 0, a free cell


class Via(IntEnum):
    """`enum ipitrace_watch_via`: how a counted IPI was asked for."""

    ICR = 0
    HYPERCALL = 1
    AVIC = 2


# `struct ipitrace_watch_cell`; what its key means depends on the What in its top bits.
WATCH_CELL: Final = np.dtype([("key", "u8"), ("count", "u8")])

# IPITRACE_WATCH_x_SHIFT and the bits from there on.
WATCH_KEY: Final = {
    "TARGET": (0, 16),
    "VECTOR": (16, 8),
    "MODE": (24, 3),
    "VIA": (27, 2),
    "ISA": (32, 2),
    "REASON": (34, 16),
    "WHAT": (60, 4),
}
WATCH_TARGET_UNKNOWN: Final = 0xFFFF

# `struct ipitrace_watch_head`: one watched vCPU's fixed counters.
WATCH_HEAD: Final = np.dtype(
    [
        ("events", "u8"),
        ("missed", "u8"),
        ("sends", "u8"),
        ("wakeups", "u8"),
        ("waited", "u8"),
        ("fixed", "u8", (2,)),
        ("apicv", "u8", (2,)),
        ("unplaced", "u8", (NR_WHATS,)),
        ("busy", "u4"),
        ("cpu", "u4"),
        ("open", "u4"),
        ("exit_reason", "u2"),
        ("exit_isa", "u1"),
        ("last_what", "u1"),
    ]
)
