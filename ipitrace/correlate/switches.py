# SPDX-License-Identifier: Apache-2.0
"""Whether all was seen of the vCPUs' threads coming to a CPU and leaving it."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ipitrace.words.events import Kind


@dataclass(frozen=True)
class Switches:
    """How often threads of vCPUs came to a CPU or left one.

    Attributes:
        seen: the sched_switch events there are.
        unseen: those that must have been, since a thread cannot come twice, nor leave twice.
    """

    seen: int = 0
    unseen: int = 0

    def __add__(self, other: "Switches") -> "Switches":
        return Switches(self.seen + other.seen, self.unseen + other.unseen)


NO_SWITCHES: Final = Switches()


def count_switches(events: NDArray[np.void]) -> Switches:
    """Count them in records of abi.events.HOST_EVENT, of one storm and in any order.

    What the kernel itself turns away is counted nowhere: no program runs, and no miss is
    counted, where a kernel hides a process from tracing, as some kernels for virtual
    machines hide the first one. A vCPU's thread that comes after such a thread is not seen
    to come; it is always seen to leave.
    """
    of_switches = events[events["kind"] == Kind.SCHED_SWITCH]
    ordered = of_switches[np.lexsort([of_switches["ts_ns"], of_switches["vcpu"]])]
    same_vcpu = ordered["vcpu"][1:] == ordered["vcpu"][:-1]
    same_way = ordered["detail"][1:] == ordered["detail"][:-1]
    return Switches(len(ordered), int(np.count_nonzero(same_vcpu & same_way)))
