# SPDX-License-Identifier: Apache-2.0
"""Checks whether all context switches of the vCPUs' threads were recorded."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ipitrace.words.events import Kind

OTHERS: Final = 2
"""`detail` of a switch between two threads of which none is a vCPU's."""


def of_others(events: NDArray[np.void]) -> NDArray[np.bool_]:
    """Which records are switches between two threads of which none is a vCPU's.

    They are in the events of a vCPU that shares the CPU, and are no event of that vCPU.
    """
    is_switch = events["kind"] == Kind.SCHED_SWITCH
    return np.asarray(is_switch & (events["detail"] == OTHERS))


@dataclass(frozen=True)
class Switches:
    """The number of times that vCPU threads were switched in or out.

    Attributes:
        seen: the recorded sched_switch events.
        unseen: missing events: a thread cannot be switched in twice, or out twice, in a row.
    """

    seen: int = 0
    unseen: int = 0

    def __add__(self, other: "Switches") -> "Switches":
        return Switches(self.seen + other.seen, self.unseen + other.unseen)


NO_SWITCHES: Final = Switches()


def count_switches(events: NDArray[np.void]) -> Switches:
    """Count switches in records of abi.events.HOST_EVENT, of one storm and in any order.

    Some kernels hide a process from tracing; some kernels for virtual machines hide the first
    one. No program runs then, and no miss is counted. If a vCPU's thread is switched in after
    a hidden thread, this event is not seen. Its switch out is always seen.
    """
    of_switches = events[events["kind"] == Kind.SCHED_SWITCH]
    ordered = of_switches[np.lexsort([of_switches["ts_ns"], of_switches["vcpu"]])]
    same_vcpu = ordered["vcpu"][1:] == ordered["vcpu"][:-1]
    same_way = ordered["detail"][1:] == ordered["detail"][:-1]
    return Switches(len(ordered), int(np.count_nonzero(same_vcpu & same_way)))
