# SPDX-License-Identifier: Apache-2.0
"""The VMM: a VM, one thread per vCPU, and one storm from boot to the end of the VM.

A storm exits to user space only a few times, and never between its first and its last measured
send. The speed of the VMM's language therefore does not affect the figures.
"""

import contextlib
import os
import queue
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Self

import numpy as np

from ipitrace.abi.storm import StormSendMethod, StormState
from ipitrace.base.errors import HostError, MeasurementError
from ipitrace.base.signals import signals_deferred
from ipitrace.host.vm_tsc import read_vm_tsc
from ipitrace.storm.driver import Hooks, Mark, Storm
from ipitrace.storm.limits import STORM_S
from ipitrace.storm.micro.image import (
    MG_DESCRIPTORS,
    MG_MAX_VCPUS,
    MG_PORT,
    GuestMemory,
    LogSizes,
    Payload,
)
from ipitrace.storm.micro.kvm import ExitReason, KvmVcpu, Vm
from ipitrace.storm.micro.stats_fd import VcpuStats

_TICK_S = 0.02
_KICK_S = 0.05
_HANG_GRACE_S = 3.0
_KICK_SIGNAL = signal.SIGUSR1
_LAST_STATES = {StormState.DONE, StormState.GAVE_UP, StormState.FAULTED}
# The order of the sender's reports. A fault may be reported at any time, by any vCPU.
_NEXT_STATES = {
    StormState.BOOTING: {StormState.WARMING_UP},
    StormState.WARMING_UP: {StormState.MEASURING, StormState.GAVE_UP},
    StormState.MEASURING: {StormState.DONE, StormState.GAVE_UP},
}
_SENDER = 0


class Machine:
    """One VM with its memory and vCPUs, for one storm. A context manager."""

    def __init__(
        self, payload: Payload, n_vcpus: int, logs: LogSizes, method: StormSendMethod
    ) -> None:
        """Build the VM; no vCPU runs yet.

        Raises:
            HostError: KVM refuses, or there is not enough memory.
        """
        self._vm = Vm()
        self._creator_tid = threading.get_native_id()
        self._cleanup = contextlib.ExitStack()
        self._cleanup.callback(self._vm.close)
        self._vcpus: list[KvmVcpu] = []
        self._stats: list[VcpuStats] = []
        self._stopping = False
        # Interrupting threading.Event.wait(), which is written in Python, would break its lock.
        self._ended: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.released = threading.Event()  # the vCPUs' threads may end
        self._failures: list[str] = []
        self._error: Exception | None = None
        self._marks: dict[StormState, Mark] = {}
        self._state = StormState.BOOTING
        self._total = logs.sends
        self._too_long = False
        try:
            self.memory = GuestMemory(payload, n_vcpus, logs)
            self._vm.set_memory(self.memory.host_address, self.memory.size)
            if method == StormSendMethod.PASSTHROUGH:
                self._vm.enable_passthrough(MG_DESCRIPTORS, MG_MAX_VCPUS)
            if method == StormSendMethod.PV_HYPERCALL:
                self._vm.keep_hypercalls()
            elif method in {StormSendMethod.HV_HYPERCALL, StormSendMethod.HV_HYPERCALL_EX}:
                self._vm.enable_hyperv()
            for index in range(n_vcpus):
                self._add_vcpu(index, method)
        except BaseException:
            self._cleanup.close()
            raise
        self.tsc_khz = self._vcpus[0].tsc_khz()
        self._tsc_offsets = self._read_tsc_offsets()

    def _read_tsc_offsets(self) -> tuple[int | None, ...]:
        """Each vCPU's TSC offset. A running vCPU would block this until it stops.

        Before Linux's 828ca89628bf (5.16) only debugfs has the offsets.
        """
        offsets = tuple(vcpu.tsc_offset() for vcpu in self._vcpus)
        if None not in offsets:
            return offsets
        known = read_vm_tsc(self._creator_tid, self._vm.fd).vcpus
        return tuple(known[i].offset if i in known else None for i in range(len(offsets)))

    def _add_vcpu(self, index: int, method: StormSendMethod) -> None:
        vcpu = self._vm.create_vcpu(index)
        self._cleanup.callback(vcpu.close)
        self._vcpus.append(vcpu)
        vcpu.set_tsc_offset(0)
        special, general = self.memory.start_state(index, method, vcpu.special_registers())
        vcpu.set_special_registers(special)
        vcpu.set_registers(general)
        if index == 0 or method != StormSendMethod.PASSTHROUGH:
            vcpu.set_runnable()  # otherwise vCPU 0 starts it with INIT and SIPI
        stats_fd = vcpu.stats_fd()
        if stats_fd is not None:
            stats = VcpuStats(stats_fd)
            self._cleanup.callback(stats.close)
            self._stats.append(stats)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._cleanup.close()

    def run(
        self,
        cpus: Sequence[int] | None,
        hooks: Hooks,
        *,
        warmup: int,
        silence_s: float,
        longest_s: float = STORM_S,
    ) -> Storm:
        """Run the storm according to the parameters in memory.

        Args:
            cpus: the host CPU that each vCPU is pinned to, or None.
            hooks: callbacks at points of the storm.
            warmup: sends that are not part of the result.
            silence_s: the longest time without a send before the guest counts as hung; a grace
                of 3 s is added.
            longest_s: the longest time of the storm.

        Raises:
            MeasurementError: the guest hung, triple-faulted, took an exception, lost more
                IPIs than allowed, or reports impossible values.
            HostError: KVM could not run it.
        """
        threads = [VcpuThread(self, i, cpus) for i in range(len(self._vcpus))]
        with _kick_signal_handled():
            try:
                _start(threads)
                hooks.threads_known([thread.wait_for_tid() for thread in threads])
                self._hooks = hooks
                pause_s = hooks.tick(0) or _TICK_S
                for thread in threads:
                    thread.go.set()
                self._watch(hooks, pause_s, silence_s + _HANG_GRACE_S, longest_s)
                hooks.over()
            finally:
                self._stop(threads)
        if self._error is not None:
            raise self._error
        self._raise_on_failure(silence_s + _HANG_GRACE_S, longest_s)
        return self._collect(warmup)

    def _watch(self, hooks: Hooks, pause_s: float, silence_s: float, longest_s: float) -> None:
        """Wait for the end of the storm; the guest's own reports can only shorten the wait."""
        most, since = -1, time.monotonic()
        deadline_s = since + longest_s
        while not self._ends_within(pause_s):
            sent = min(int(self.memory.status()["sent"]), self._total)
            pause_s = hooks.tick(sent) or _TICK_S
            now_s = time.monotonic()
            if sent > most:
                most, since = sent, now_s
            if now_s > deadline_s:
                self._too_long = True
                return
            if now_s - since > silence_s:
                return

    def _ends_within(self, seconds: float) -> bool:
        with contextlib.suppress(queue.Empty):
            self._ended.get(timeout=seconds)
            return True
        return False

    @signals_deferred()
    def _stop(self, threads: Sequence["VcpuThread"]) -> None:
        self._stopping = True
        self.released.set()
        for vcpu, thread in zip(self._vcpus, threads, strict=True):
            thread.go.set()
            while thread.is_alive():
                vcpu.ask_immediate_exit()
                if thread.ident is not None:
                    signal.pthread_kill(thread.ident, _KICK_SIGNAL)
                thread.join(_KICK_S)

    def run_vcpu(self, index: int) -> None:
        """Run vCPU `index` until the storm ends; called by the vCPU's own thread."""
        vcpu = self._vcpus[index]
        while not self._stopping:
            try:
                vcpu.run()
            except (InterruptedError, BlockingIOError):  # a signal or a SIPI arrived
                continue
            except OSError as error:
                self._fail(index, f"KVM_RUN failed: {error.strerror}")
                return
            if vcpu.exit_reason != ExitReason.IO:
                self._fail(index, _describe_exit(vcpu))
                return
            port, value = vcpu.io_exit()
            if port != MG_PORT:
                self._fail(index, f"wrote to the unknown port {port:#x}")
                return
            if value is None or value not in set(StormState):
                what = "no byte" if value is None else f"the unknown state {value:#x}"
                self._fail(index, f"reported {what}")
                return
            state = StormState(value)
            if not self._may_report(index, state):
                self._fail(index, f"reported {state.name} after {self._state.name}")
                return
            self._marks[state] = self._mark()
            self._state = state
            if state in _LAST_STATES:
                self._ended.put(None)
                return

    def _may_report(self, index: int, state: StormState) -> bool:
        if state == StormState.FAULTED:
            return self._state not in _LAST_STATES
        return index == _SENDER and state in _NEXT_STATES.get(self._state, ())

    def _mark(self) -> Mark:
        stats = tuple(s.read() for s in self._stats) if self._stats else None
        return Mark(time.monotonic_ns(), stats, self._hooks.mark())

    def abort(self, error: Exception) -> None:
        """End the storm; run() raises `error`."""
        self._error = error
        self._ended.put(None)

    def _fail(self, index: int, what: str) -> None:
        self._failures.append(f"vCPU {index} {what}")
        self._ended.put(None)

    def _raise_on_failure(self, silence_s: float, longest_s: float) -> None:
        status = self.memory.status()
        if self._failures:
            raise MeasurementError(
                f"The guest died: {self._failures[0]}, after {int(status['sent'])} sends.",
                "See dmesg; try --no-trace, and one --scenario at a time.",
            )
        if StormState.FAULTED in self._marks:
            raise MeasurementError(
                f"The guest took exception {int(status['fault_vector'])} (error "
                f"{int(status['fault_error']):#x}) at {int(status['fault_rip']):#x} on vCPU "
                f"{int(status['fault_vcpu'])}.",
                "This is a defect of the micro-guest or of this host's KVM; please report it.",
            )
        if StormState.GAVE_UP in self._marks:
            raise MeasurementError(
                f"The guest gave up: {int(status['incomplete'])} IPIs were not acknowledged "
                "in time.",
                "IPIs are lost, or the vCPUs get no CPU time: check the host's load.",
            )
        if self._too_long:
            raise MeasurementError(
                f"The guest's storm did not end within {longest_s:.0f} s ("
                f"{int(status['sent'])} sends). The guest was stopped.",
                "Check the host's load.",
            )
        if StormState.DONE not in self._marks:
            raise MeasurementError(
                f"The guest hung: no IPI was sent for {silence_s:.0f} s, after "
                f"{int(status['sent'])} sends. The guest was stopped.",
                "See dmesg, and check the host's load.",
            )

    def _collect(self, warmup: int) -> Storm:
        """Copy the results from the guest's memory; no vCPU runs any more."""
        status = self.memory.status()
        if int(status["sent"]) != self._total:
            raise MeasurementError(
                f"The guest's records cannot be true: it reports the end after {status['sent']} "
                f"of {self._total} sends.",
                "Check that the payload belongs to this version of ipitrace.",
            )
        sends = self.memory.sends()
        first_tsc = sends["send_tsc"][:, warmup].min()
        receipts = [self.memory.receipts(i) for i in range(len(self._vcpus))]
        skipped = [int(np.searchsorted(r["handler_tsc"], first_tsc)) for r in receipts]
        handled = self.memory.handled()
        return Storm(
            sends=sends[:, warmup:].reshape(-1),
            receipts=tuple(r[n:] for r, n in zip(receipts, skipped, strict=True)),
            handled=tuple(h - n for h, n in zip(handled, skipped, strict=True)),
            incomplete=int(status["incomplete"]),
            spurious=int(status["spurious"]),
            start=self._marks[StormState.MEASURING],
            end=self._marks[StormState.DONE],
            tsc_offset=self._tsc_offsets[0],
            tsc_khz=self.tsc_khz,
            tsc_offsets_start=self._tsc_offsets,
            tsc_offsets_end=self._read_tsc_offsets(),
        )


class VcpuThread(threading.Thread):
    """A vCPU's thread: is pinned, reports its id, runs the vCPU, and stays until it is released."""

    def __init__(self, machine: Machine, index: int, cpus: Sequence[int] | None) -> None:
        super().__init__(name=f"vcpu{index}", daemon=True)
        self.go = threading.Event()
        self._machine = machine
        self._index = index
        self._cpus = cpus
        self._ready = threading.Event()
        self._pin_error: OSError | None = None

    def run(self) -> None:
        """Pin the thread, run the vCPU, and wait until the thread may end."""
        if self._cpus is not None:
            try:
                os.sched_setaffinity(0, {self._cpus[self._index]})
            except OSError as error:
                self._pin_error = error
        self._ready.set()
        self.go.wait()
        try:
            self._machine.run_vcpu(self._index)
        except Exception as error:  # noqa: BLE001  (a callback's exception, for run() to raise)
            self._machine.abort(error)
        self._machine.released.wait()  # the thread's state is read meanwhile

    @signals_deferred()
    def wait_for_tid(self) -> int:
        """The kernel's id of this thread, after it was pinned."""
        self._ready.wait()
        if self._pin_error is not None:
            raise HostError(
                f"vCPU {self._index} cannot be pinned: {self._pin_error.strerror}.",
                "Check which CPUs this process may use (taskset -p $$).",
            )
        return self.native_id or 0


def _start(threads: Sequence[VcpuThread]) -> None:
    """Start all threads; raises HostError if a limit of this process or host prevents it."""
    try:
        for thread in threads:
            thread.start()
    except RuntimeError as error:  # threading's exception for pthread_create's EAGAIN
        raise HostError(
            f"{len(threads)} vCPU threads cannot be started ({error}).",
            "Raise the limit (ulimit -u, ulimit -v, the control group's), or use fewer vCPUs.",
        ) from error


def _describe_exit(vcpu: KvmVcpu) -> str:
    reason = vcpu.exit_reason
    rip = vcpu.registers().rip
    if reason == ExitReason.SHUTDOWN:
        return f"triple-faulted at rip {rip:#x}"
    try:
        name = ExitReason(reason).name
    except ValueError:
        name = str(reason)
    words = " ".join(f"{word:#x}" for word in vcpu.exit_words(4))
    return f"stopped with KVM_EXIT_{name} at rip {rip:#x} ({words})"


@contextlib.contextmanager
def _kick_signal_handled() -> Iterator[None]:
    """Handle the signal that interrupts KVM_RUN, with no other effect."""

    def ignore(_signum: int, _frame: FrameType | None) -> None:
        """Do nothing; KVM_RUN returns EINTR."""

    before = signal.signal(_KICK_SIGNAL, ignore)
    try:
        yield
    finally:
        signal.signal(_KICK_SIGNAL, before)
