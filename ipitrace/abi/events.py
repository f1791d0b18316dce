# SPDX-License-Identifier: Apache-2.0
"""NumPy types for the structures of bpf/ipitrace_events.h; tests/contract compares them."""

from typing import Final

import numpy as np

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
        ("others", "u8"),
        ("pad", "u8", (1,)),
    ]
)

# Threads of one element of the map vcpu_of_tid.
TIDS_PER_CELL: Final = 64
VCPU_OF_TID: Final = np.dtype([("vcpu_plus_1", "u2", (TIDS_PER_CELL,))])


# A record that was read from a ring, with the ring's vCPU and event kind.
HOST_EVENT: Final = np.dtype([*RING_EVENT.descr, ("vcpu", "u2"), ("kind", "u1")], align=True)
