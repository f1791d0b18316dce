# SPDX-License-Identifier: Apache-2.0
"""vCPU threads that have taken a slot by themselves, and ended before their VM was examined.

A VM may start and end between two searches. Its threads' events are counted all the same, but KVM
no longer reports whose vCPUs they were. All that is known is what the BPF program noted: the
thread, its process, its user and its name.
"""

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from ipitrace.base.units import NS_PER_S
from ipitrace.host.files import HOST
from ipitrace.tracer.counting import Claim
from ipitrace.vm import OWN_NAME, VirtualMachine, read_started_at

_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


def _runs(tid: int) -> bool:
    """Whether a thread with this id has not ended; also where /proc hides it (hidepid)."""
    if HOST.text(f"/proc/{tid}/stat") is not None:
        return read_started_at(tid) is not None
    try:
        return bool(os.sched_getaffinity(tid))
    except OSError:
        return False


def _lives(claim: Claim) -> bool:
    """Whether it is still the thread that took the slot, not a later one with its id."""
    ticks = read_started_at(claim.tid)
    asleep_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns()
    # Both clocks are read at different times; a tick is the unit of the thread's start.
    since_s = (claim.since_ns + asleep_ns) / NS_PER_S
    return _runs(claim.tid) and (ticks is None or (ticks - 1) / _TICKS_PER_S <= since_s)


class EndedClaims:
    """Finds the threads that have ended, once all such threads of their process have."""

    def __init__(self, lives: Callable[[Claim], bool] = _lives) -> None:
        self._lives = lives
        self._held: frozenset[Claim] = frozenset()

    def of(self, claims: Iterable[Claim]) -> list[tuple[Claim, ...]]:
        """The claims to report, by process, each process's oldest first.

        While other threads of the process live, which may belong to the same VM, a thread that
        has ended waits once, for the next call.
        """
        ended: defaultdict[int, list[Claim]] = defaultdict(list)
        living: set[int] = set()
        for claim in claims:
            if self._lives(claim):
                living.add(claim.pid)
            else:
                ended[claim.pid].append(claim)
        due = [
            tuple(sorted(c for c in of_process if pid not in living or c in self._held))
            for pid, of_process in ended.items()
        ]
        reported = {claim for of_process in due for claim in of_process}
        self._held = frozenset(c for found in ended.values() for c in found if c not in reported)
        return [of_process for of_process in due if of_process]


def why_ended(claims: Sequence[Claim]) -> str:
    """What of these threads' process has ended."""
    what = "these vCPU threads" if _runs(claims[0].pid) else "its process"
    return f"{what} ended before the VM was examined"


def ended_vm(claims: Sequence[Claim]) -> VirtualMachine:
    """What is known of the VM, or the VMs, of a process that ran these threads."""
    first = claims[0]
    unknown = "it ended before it was examined"
    name = f"{OWN_NAME}{first.pid}"
    return VirtualMachine(
        pid=first.pid,
        name=name,
        aliases=(name,),
        vmm="?",
        vcpus=(),
        memory_bytes=None,
        started_at_ticks=0,
        apic_mode=None,
        backend=None,
        vm_fd=-1,
        creator_tid=None,
        unknown=dict.fromkeys(("memory_bytes", "apic_mode", "backend"), unknown),
        uid=first.uid,
    )
