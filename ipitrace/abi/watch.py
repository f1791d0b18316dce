# SPDX-License-Identifier: Apache-2.0
"""NumPy types for the structures of bpf/ipitrace_watch.h; tests/contract compares them."""

from enum import IntEnum
from typing import Final

import numpy as np


class What(IntEnum):
    """`enum ipitrace_watch_what`: the kind of event that a cell counts."""

    IPI = 1
    OTHER = 2
    EXIT = 3
    CPU = 4


NR_WHATS: Final = 5  # including 0, a free cell


class SentBy(IntEnum):
    """`enum ipitrace_watch_sent_by`: how a counted IPI was sent."""

    ICR = 0
    HYPERCALL = 1
    AVIC = 2
    HV = 3


# `struct ipitrace_watch_cell`; the meaning of its key depends on the What in its top bits.
WATCH_CELL: Final = np.dtype([("key", "u8"), ("count", "u8")])


# IPITRACE_WATCH_x_SHIFT, and the number of bits of the field.
WATCH_KEY: Final = {
    "TARGET": (0, 16),
    "VECTOR": (16, 8),
    "MODE": (24, 3),
    "SENT_BY": (27, 2),
    "CAUSE": (29, 3),
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
        ("pv_tlb_flushes", "u8"),
        ("unplaced", "u8", (NR_WHATS - 1,)),  # at What - 1
        ("busy", "u4"),
        ("cpu", "u4"),
        ("open", "u4"),
        ("exit_reason", "u2"),
        ("exit_isa", "u1"),
        ("last_what", "u1"),
        ("xen_hypercalls", "u8"),
        ("pad", "u8", (7,)),
    ]
)


class Total(IntEnum):
    """`enum ipitrace_watch_total`: totals of vCPU threads without a slot."""

    STRANGER_SENDS = 0
    STRANGERS = 1


NR_TOTALS: Final = 2


# `struct ipitrace_watch_claim`: who has taken a slot.
WATCH_CLAIM: Final = np.dtype(
    [("thread", "u8"), ("since_ns", "u8"), ("uid", "u4"), ("comm", "u1", (16,)), ("pad", "u4")]
)
