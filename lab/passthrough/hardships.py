# SPDX-License-Identifier: Apache-2.0
"""Runs on the emulated host: conditions under which Passthrough IPI could lose an interrupt.

Each case is one fresh VM whose vCPU 0 sends to another one through its descriptor. For each
case a line of JSON has the number of delivered IPIs, their cost for the sender, and the number
of disturbances.
"""

import fcntl
import json
import os
import signal
import struct
import sys
import threading
from collections.abc import Sequence

from ipitrace.abi.storm import StormPattern, StormSendMethod, StormState, StormTargetState
from ipitrace.base.errors import MeasurementError
from ipitrace.storm.driver import Hooks
from ipitrace.storm.micro.image import LogSizes, load_payload
from ipitrace.storm.micro.kvm import RUN_IMMEDIATE_EXIT
from ipitrace.storm.micro.machine import Machine, VcpuThread

IPIS = int(sys.argv[1])
PACE_CYCLES = 5000
TIMEOUT_CYCLES = 3_000_000_000
SILENCE_S = 120
METHOD = StormSendMethod.PASSTHROUGH
NMI = 0x400

SET_GUEST_DEBUG = 0x4048AE9B
GUESTDBG_ENABLE = 1
GUESTDBG_BLOCKIRQ = 0x00100000
"""A vCPU with this debug flag inhibits APICv for its VM (APICV_INHIBIT_REASON_BLOCKIRQ)."""


class Undisturbed(Machine):
    """The case without a disturbance; the others add one.

    Attributes:
        disturbed: the number of disturbances.
        tids: the vCPUs' threads, once known.
    """

    disturbed = 0
    tids: Sequence[int] = ()

    def threads_known(self, tids: Sequence[int]) -> None:
        """Store the thread ids."""
        self.tids = tids

    def tick(self, sent: int) -> None:
        """Disturb it; called every 20 ms."""


class TargetMoves(Undisturbed):
    """The target's thread is moved from CPU to CPU."""

    vcpu = 1

    def tick(self, sent: int) -> None:
        """Move it to the next CPU."""
        if sent:
            self.disturbed += 1
            cpu = self.disturbed % (os.cpu_count() or 1)
            os.sched_setaffinity(self.tids[self.vcpu], {cpu})


class SenderMoves(TargetMoves):
    """The sender's thread is moved from CPU to CPU."""

    vcpu = 0


class Inhibited(Undisturbed):
    """The last vCPU, which is not part of the storm, inhibits APICv all the time."""

    _ident = 0

    def run_vcpu(self, index: int) -> None:
        """The last vCPU switches the inhibit on or off each time its thread is interrupted."""
        if index != len(self._vcpus) - 1:
            super().run_vcpu(index)
            return
        self._ident = threading.get_ident()
        vcpu, inhibiting = self._vcpus[index], True
        while not self._stopping:
            control = GUESTDBG_ENABLE | GUESTDBG_BLOCKIRQ if inhibiting else 0
            fcntl.ioctl(vcpu.fd, SET_GUEST_DEBUG, struct.pack("<II64x", control, 0))
            try:
                vcpu.run()
            except BlockingIOError:  # a SIPI arrived
                continue
            except InterruptedError:
                if not self._stopping:
                    vcpu.run_area[RUN_IMMEDIATE_EXIT] = 0
                    inhibiting = not inhibiting


class InhibitedNowAndThen(Inhibited):
    """The same, but its thread is interrupted to switch the inhibit."""

    def tick(self, sent: int) -> None:
        """Interrupt it."""
        if sent:
            self.disturbed += 1
            self._vcpus[-1].ask_immediate_exit()
            signal.pthread_kill(self._ident, signal.SIGUSR1)


class PluggedIn(Undisturbed):
    """The target is created while the sender already waits for it (hotplug)."""

    index = 2

    def _add_vcpu(self, index: int, method: StormSendMethod) -> None:
        if index != self.index:
            super()._add_vcpu(index, method)

    def tick(self, _sent: int) -> None:
        """Create the vCPU, once."""
        if self.disturbed or StormState.MEASURING not in self._marks:
            return
        self.disturbed = 1
        super()._add_vcpu(self.index, METHOD)
        self._vcpus[self.index].set_runnable()
        self._late = VcpuThread(self, self.index, None)
        self._late.start()
        self._late.go.set()

    def _stop(self, threads: Sequence[VcpuThread]) -> None:
        super()._stop([*threads, self._late] if self.disturbed else threads)


def run(case: type[Undisturbed], *, n_vcpus: int = 2, target: int = 1, **state: int) -> None:
    """Run one storm in one VM; print the result."""
    logs = LogSizes(sends=IPIS, receipts_per_vcpu=IPIS)
    with case(load_payload(), n_vcpus, logs, METHOD) as machine:
        fields = {
            "pattern": StormPattern.UNICAST,
            "target_state": StormTargetState.RUNNING_USER,
            "send_method": METHOD,
            "target": target,
            "max_incomplete": 3,
            "n_vcpus": 2 if case is PluggedIn else n_vcpus,
            "count": IPIS,
            "pace_cycles": PACE_CYCLES,
            "timeout_cycles": TIMEOUT_CYCLES,
        }
        machine.memory.write_params(**(fields | state))
        hooks = Hooks(threads_known=machine.threads_known, tick=machine.tick)
        storm = machine.run(None, hooks, warmup=0, silence_s=SILENCE_S)
        halted = state.get("target_state") == StormTargetState.HALTED
        tell(
            case=case.__name__ + (", halted" if halted else ""),
            sent=len(storm.sends),
            delivered=len(storm.receipts[target]),
            incomplete=storm.incomplete,
            sender_exits=(storm.end.stats[0]["exits"] - storm.start.stats[0]["exits"])
            if storm.start and storm.start.stats and storm.end and storm.end.stats
            else None,
            disturbed=machine.disturbed,
        )


def nmi_by_the_other_msr() -> None:
    """vCPU 0 sends vCPU 1 an NMI, for which the micro-guest has no handler."""
    with Machine(load_payload(), 2, LogSizes(1, 1), METHOD) as machine:
        machine.memory.write_params(
            send_method=METHOD, target=1, count=1, timeout_cycles=TIMEOUT_CYCLES
        )
        machine.memory.write_foreign(NMI, 1, 1, emulated=True)
        try:
            machine.run(None, Hooks(), warmup=0, silence_s=SILENCE_S)
            reported = "nothing"
        except MeasurementError as error:
            reported = str(error)
    tell(case="NMI by the other MSR", guest_said=reported)


def tell(**facts: object) -> None:
    """Print a line; it is on disk before the next case begins."""
    print(json.dumps(facts))
    sys.stdout.flush()
    os.fsync(sys.stdout.fileno())


for state in (StormTargetState.RUNNING_USER, StormTargetState.HALTED):
    for case in (Undisturbed, TargetMoves, SenderMoves):
        run(case, target_state=state)
    for case in (Inhibited, InhibitedNowAndThen):
        run(case, n_vcpus=3, target_state=state)
    run(PluggedIn, n_vcpus=3, target=PluggedIn.index, target_state=state)
nmi_by_the_other_msr()
