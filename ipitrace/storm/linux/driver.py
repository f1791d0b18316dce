# SPDX-License-Identifier: Apache-2.0
"""Drives a Linux guest that has ipitrace_storm in it, or this machine itself."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from ipitrace.base.errors import HostError, MeasurementError, UsageError
from ipitrace.base.foreign import plain
from ipitrace.base.units import MIB
from ipitrace.clock import GuestTsc
from ipitrace.host.vm_tsc import read_vm_tsc
from ipitrace.recording.guest import GuestResult, VmResult, linux_guest
from ipitrace.storm import limits
from ipitrace.storm.driver import Hooks, Storm, StormRequest
from ipitrace.storm.linux.helper import (
    HELPER,
    INSTALL,
    MODULE,
    GuestCpus,
    HelperStatus,
    find_helper,
    read_cpus,
    read_status,
)
from ipitrace.storm.linux.storm_file import Asked, StormFile
from ipitrace.storm.transport.shell import Finished, Shell
from ipitrace.vm import VirtualMachine, still_there
from ipitrace.words.scenarios import MICRO_GUEST_ONLY, Pattern, Scenario

_SENDER: Final = 0
_TARGET: Final = 1
_MAX_COUNT: Final = 1_000_000
_CHECK_S: Final = 0.5  # the interval of checks of the VM during a storm
_LONGEST_S: Final = limits.STORM_S + 120.0  # the module's own limit, and the set-up
_LOST_IPI: Final = "lost-ipi"
_USAGE, _STORM_FAILED = 2, 4  # of the helper's exit codes


@dataclass(frozen=True)
class LinuxGuest:
    """A guest that runs storms with its own kernel module.

    Attributes:
        shell: the transport.
        helper: the path of the helper in the guest.
        status: the helper's report on the guest.
        vm: the VM on this host; None if there is none, or the host is not traced.
        cpus: the guest's CPUs; their APIC ids are KVM's ids of the vCPUs.
    """

    shell: Shell
    helper: str
    status: HelperStatus
    vm: VirtualMachine | None
    cpus: GuestCpus

    @classmethod
    def prepare(cls, shell: Shell, vm: VirtualMachine | None) -> "LinuxGuest":
        """Read the guest's status and CPUs.

        Raises:
            HostError: it cannot run storms, or its CPUs are not the VM's vCPUs.
        """
        helper = find_helper(shell)
        status = read_status(shell, helper)
        if not status.module.loaded:
            raise HostError(
                f"The guest's kernel module {MODULE} is not loaded.",
                f"A reboot removes it. {INSTALL}",
            )
        if not {_SENDER, _TARGET} <= set(status.online):
            online = plain(", ".join(map(str, status.online)))
            raise HostError(
                f"The guest's online CPUs are {online}; storms need {_SENDER} and {_TARGET}.",
                "Give it more CPUs, or bring them online.",
            )
        guest = cls(shell, helper, status, vm, read_cpus(shell, status.n_cpus))
        if vm is not None:
            guest.tids()
        return guest

    @property
    def n_vcpus(self) -> int:
        """CPUs of the guest; number 0 sends."""
        return self.status.n_cpus

    @property
    def max_count(self) -> int:
        """The largest storm, including the warm-up, that the guest can log."""
        return _MAX_COUNT

    @property
    def tsc_khz(self) -> int | None:
        """The TSC's rate according to the guest's kernel."""
        return self.status.tsc_khz

    @property
    def apic_ids(self) -> tuple[int, ...] | None:
        """Each CPU's APIC id; None if it equals the CPU's number."""
        return self.cpus.apic_ids

    @property
    def pinned_cpus(self) -> tuple[int, ...] | None:
        """The host CPU of each guest CPU, if each may run on one only."""
        if self.vm is None:
            return None
        by_id = {vcpu.index: vcpu.cpus for vcpu in self.vm.vcpus}
        places = [by_id.get(i, ()) for i in self._vcpu_ids()]
        return None if any(len(p) != 1 for p in places) else tuple(p[0] for p in places)

    def _vcpu_ids(self) -> tuple[int, ...]:
        return self.cpus.apic_ids if self.cpus.apic_ids is not None else tuple(range(self.n_vcpus))

    @property
    def protected_tsc(self) -> str | None:
        """Why the host does not decide the guest's TSC; None if it does, as far as is known."""
        found = None if self.vm is None else self.vm.confidential
        if found is not None and found.protected_tsc:
            secure = "" if found.kind == "TDX" else " with Secure TSC"
            return f"the VM's command line makes it a {found.kind} guest{secure}"
        return self.cpus.protected_tsc

    def tids(self) -> tuple[int, ...]:
        """The host thread of each guest CPU, found by its APIC id.

        Raises:
                HostError: no vCPU has a CPU's id, or the vCPU's thread is unknown.
        """
        if self.vm is None:
            return ()
        known = {vcpu.index: vcpu.tid for vcpu in self.vm.vcpus}
        tids = []
        for cpu, vcpu in enumerate(self._vcpu_ids()):
            tid = known.get(vcpu)
            if vcpu not in known:
                raise HostError(
                    f"The guest's CPU {cpu} has APIC id {vcpu}, but the VM {self.vm.name} has no "
                    f"such vCPU (it has {', '.join(map(str, sorted(known)))}).",
                    "Check whether --vm and --via name the same machine.",
                )
            if tid is None:
                raise HostError(
                    f"The thread of vCPU {vcpu} is unknown: {self.vm.unknown.get('tid', '')}.",
                    "See 'ipitrace list'; --no-trace does not need the thread.",
                )
            tids.append(tid)
        return tuple(tids)

    def unsupported(self, scenario: Scenario) -> str | None:
        """Why this guest cannot run `scenario`, or None if it can."""
        parts = (scenario.pattern, scenario.target_state, scenario.send_method)
        for part in parts:
            if part in self.status.unsupported:
                return self.status.unsupported[part]
        if not MICRO_GUEST_ONLY.isdisjoint(parts):
            return f"{MODULE} does not do it"
        return None

    def targets(self, scenario: Scenario) -> tuple[int, ...]:
        """The CPUs that handle each IPI of `scenario`."""
        if scenario.pattern == Pattern.SELF:
            return (_SENDER,)
        if scenario.pattern == Pattern.UNICAST:
            return (_TARGET,)
        if scenario.pattern == Pattern.RING:
            return tuple(self.status.online)
        return tuple(cpu for cpu in self.status.online if cpu != _SENDER)

    def cpus_in(self, _scenario: Scenario) -> tuple[int, ...] | None:
        """The host CPU of each guest CPU: the VM's owner pins them, for all scenarios."""
        return self.pinned_cpus

    def describe(self) -> GuestResult:
        """The guest as in run.json."""
        vm, module = self.vm, self.status.module
        return linux_guest(
            native=self.cpus.native,
            n_vcpus=self.n_vcpus,
            pinned_cpus=self.pinned_cpus,
            via=self.shell.via,
            kernel=self.status.kernel,
            emulated=self.cpus.emulated,
            apic_mode=self.status.apic_mode,
            module_version=module.version,
            module_srcversion=module.srcversion,
            helper_version=self.status.helper_version,
            apic_ids=self.cpus.apic_ids,
            vm=None if vm is None else VmResult(vm.name, vm.vmm, vm.pid),
        )

    def run(self, request: StormRequest, hooks: Hooks) -> Storm:
        """Run one storm.

        Raises:
                HostError: the guest cannot be reached, or does not support the request.
                MeasurementError: the VM died or changed, or IPIs were lost.
        """
        if request.inject not in {None, _LOST_IPI}:
            raise UsageError(f"Only the micro-guest takes --inject {request.inject}.", "")
        targets = self.targets(request.scenario)
        pattern = request.scenario.pattern
        asked = Asked(request.warmup + request.count, targets, self.n_vcpus, pattern)
        senders = len(asked.routes)
        most_bytes = limits.storm_bytes(asked.sends, senders, len(targets), self.n_vcpus)
        if most_bytes > limits.STORM_BYTES:
            raise UsageError(
                f"The records of {asked.sends} IPIs to {len(targets)} CPUs take "
                f"{most_bytes // MIB} MiB; the limit is {limits.STORM_BYTES // MIB} MiB.",
                "Ask for a smaller --count, or distribute it over more repetitions: --repeat.",
            )
        self._check_vm()
        hooks.threads_known(self.tids())
        before, _ = self._tscs()
        tick = _every(_CHECK_S, self._check_vm)

        def each_tick() -> float | None:
            tick()
            return hooks.tick(0)

        try:
            done = self.shell.run(
                self._command(request),
                timeout_s=_LONGEST_S,
                tick=each_tick,
                limit_bytes=most_bytes,
            )
        except HostError as error:
            self._check_vm()  # raises the more specific error
            raise MeasurementError(error.message, error.hint) from error
        self._check_vm()
        hooks.over()
        storm = self._storm_of(done, asked, request.warmup)
        after, absent = self._tscs()
        if before is None or after is None:
            return replace(storm, no_tsc=absent)
        return replace(
            storm,
            tsc_offset=after[0].offset,
            tsc_ratio=(after[0].ratio, after[0].frac_bits),
            tsc_offsets_start=tuple(tsc.offset for tsc in before),
            tsc_offsets_end=tuple(tsc.offset for tsc in after),
        )

    def _command(self, request: StormRequest) -> list[str]:
        tsc_hz = (self.status.tsc_khz or 0) * 1000 or request.tsc_hz
        scenario = request.scenario
        options = {
            "pattern": scenario.pattern,
            "state": scenario.target_state,
            "method": scenario.send_method,
            "sender": _SENDER,
            "target": _SENDER if scenario.pattern == Pattern.SELF else _TARGET,
            "warmup": request.warmup,
            "count": request.count,
            "pace-cycles": request.pace_cycles,
            "timeout-cycles": int(request.timeout_s * tsc_hz),
            "burn-cycles": request.handler_burn_cycles,
        }
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        lose = ["--lose-one"] if request.inject == _LOST_IPI else []
        return [self.helper, "run", *words, *lose]

    def _storm_of(self, done: Finished, asked: Asked, warmup: int) -> Storm:
        if done.status == 0:
            return StormFile.parse(done.stdout, asked).storm(warmup, self.n_vcpus)
        message = plain(done.stderr) or f"no message, status {done.status}"
        if done.status == _STORM_FAILED:
            raise MeasurementError(
                f"The storm failed in the guest: {message}",
                "Check the guest's load, and see its dmesg.",
            )
        if done.status == _USAGE:
            raise UsageError(f"The guest's {HELPER} reports: {message}", "Reduce the request.")
        raise HostError(f"The guest's {HELPER} reports: {message}", f"See its dmesg. {INSTALL}")

    def _check_vm(self) -> None:
        """Check that the VM has not changed.

        Raises:
            MeasurementError: it has changed.
        """
        reason = None if self.vm is None else still_there(self.vm)
        if self.vm is not None and reason is not None:
            raise MeasurementError(
                f"The VM {self.vm.name} has changed: {reason}.",
                "See 'ipitrace list'.",
            )

    def _tscs(self) -> tuple[tuple[GuestTsc, ...] | None, str | None]:
        """Each guest CPU's TSC, or None and the reason why it is unknown."""
        vm = self.vm
        if vm is None:
            return None, "nothing was traced"
        if self.protected_tsc is not None:
            return None, (
                f"{self.protected_tsc}, so its host does not decide its TSC, and the offset that "
                "KVM shows means nothing"
            )
        found = read_vm_tsc(vm.creator_tid or vm.pid, vm.vm_fd)
        if any(i not in found.vcpus for i in self._vcpu_ids()):
            return None, found.absent or "debugfs does not show every vCPU"
        return tuple(found.vcpus[i] for i in self._vcpu_ids()), None


def _every(seconds: float, call: Callable[[], None]) -> Callable[[], None]:
    """A function that calls `call` at most once in this many seconds."""
    next_s = 0.0

    def sometimes() -> None:
        nonlocal next_s
        if time.monotonic() >= next_s:
            call()
            next_s = time.monotonic() + seconds

    return sometimes
