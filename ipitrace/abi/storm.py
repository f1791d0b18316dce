# SPDX-License-Identifier: Apache-2.0
"""NumPy types for the storm's binary interface.

guest-tools/storm_abi.h defines it; tests/contract compiles that header and
compares every size, offset and number with this module.
"""

from enum import IntEnum

import numpy as np

ABI_VERSION = 2
ALL_BUT_SELF = 0xFFFF
ALL = 0xFFFE
TARGET_MASK = 0xFFFD
FILE_MAGIC = b"IPISTORM"  # the module's name when the format was made


class StormPattern(IntEnum):
    """enum storm_pattern."""

    UNICAST = 0
    SELF = 1
    BROADCAST = 2
    RING = 3
    MULTICAST = 4
    BROADCAST_SELF = 5
    UNICAST_LOGICAL = 6


class StormTargetState(IntEnum):
    """enum storm_target_state."""

    RUNNING_USER = 0
    RUNNING_KERNEL = 1
    HALTED = 2
    MASKED = 3
    PREEMPTED = 4


class StormSendMethod(IntEnum):
    """enum storm_send_method."""

    X2APIC = 0
    XAPIC = 1
    PV_HYPERCALL = 2
    PASSTHROUGH = 3
    SMP_CALL = 4
    HV_HYPERCALL = 5
    HV_HYPERCALL_EX = 6


class StormInject(IntEnum):
    """enum storm_inject."""

    NONE = 0
    LOST_IPI = 1
    HANG = 2
    TRIPLE_FAULT = 3


class StormState(IntEnum):
    """enum storm_state."""

    BOOTING = 0
    WARMING_UP = 1
    MEASURING = 2
    DONE = 3
    GAVE_UP = 4
    FAULTED = 5


PARAMS = np.dtype(
    [
        ("abi_version", "<u4"),
        ("n_vcpus", "<u4"),
        ("pattern", "<u4"),
        ("target_state", "<u4"),
        ("send_method", "<u4"),
        ("target", "<u4"),
        ("inject", "<u4"),
        ("max_incomplete", "<u4"),
        ("warmup", "<u8"),
        ("count", "<u8"),
        ("pace_cycles", "<u8"),
        ("timeout_cycles", "<u8"),
        ("sends", "<u8"),
        ("handler_burn_cycles", "<u8"),
        ("sender", "<u4"),
        ("target_mask", "<u4"),
    ]
)
"""struct storm_params."""

STATUS = np.dtype(
    [
        ("state", "<u4"),
        ("incomplete", "<u4"),
        ("sent", "<u8"),
        ("fault_vector", "<u4"),
        ("fault_vcpu", "<u4"),
        ("fault_rip", "<u8"),
        ("fault_error", "<u8"),
        ("spurious", "<u8"),
        ("as_asked", "<u8"),
        ("reserved", "<u8"),
    ]
)
"""struct storm_status."""

SEND = np.dtype(
    [
        ("send_tsc", "<u8"),
        ("sent_tsc", "<u8"),
        ("ack_tsc", "<u8"),
        ("seq", "<u4"),
        ("target", "<u2"),
        ("sender", "<u2"),
    ]
)
"""struct storm_send: one send in the sender's log."""

RECEIPT = np.dtype([("handler_tsc", "<u8"), ("eoi_tsc", "<u8"), ("seq", "<u8")])
"""struct storm_receipt: one handler entry in the log of the vCPU that handled it."""

FILE = np.dtype(
    [
        ("magic", "S8"),
        ("abi_version", "<u4"),
        ("header_bytes", "<u4"),
        ("n_vcpus", "<u4"),
        ("vector", "<u4"),
        ("tsc_khz", "<u8"),
        ("n_sends", "<u8"),
        ("params", PARAMS),
        ("status", STATUS),
    ]
)
"""struct storm_file: the header of the file that a Linux guest returns."""
