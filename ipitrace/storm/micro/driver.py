# SPDX-License-Identifier: Apache-2.0
"""Drives the micro-guest: one fresh VM a storm."""

import contextlib
from dataclasses import dataclass, replace

from ipitrace.abi.storm import (
    RECEIPT,
    SEND,
    StormInject,
    StormPattern,
    StormSendMethod,
    StormTargetState,
)
from ipitrace.base.units import MIB
from ipitrace.recording.guest import GuestResult, micro_guest
from ipitrace.storm import limits
from ipitrace.storm.driver import Hooks, Storm, StormRequest
from ipitrace.storm.micro import passthrough, rival
from ipitrace.storm.micro.image import (
    MAX_MEMORY,
    MG_MAX_VCPUS,
    MG_VECTOR_SELF,
    MG_VECTOR_TARGET,
    LogSizes,
    Payload,
    load_payload,
)
from ipitrace.storm.micro.machine import Machine
from ipitrace.words.scenarios import (
    Pattern,
    Scenario,
    SendMethod,
    TargetState,
)

MIN_VCPUS = 2
MAX_VCPUS = MG_MAX_VCPUS
MAX_COUNT = 10_000_000
_MAX_INCOMPLETE = 3
_RIVAL_S = 60.0  # that a rival has beyond the storm it is for

_PATTERNS = {
    Pattern.UNICAST: StormPattern.UNICAST,
    Pattern.SELF: StormPattern.SELF,
    Pattern.BROADCAST: StormPattern.BROADCAST,
}
_STATES = {
    TargetState.RUNNING: StormTargetState.RUNNING_USER,
    TargetState.RUNNING_KERNEL: StormTargetState.RUNNING_KERNEL,
    TargetState.HALTED: StormTargetState.HALTED,
    TargetState.BLOCKED: StormTargetState.HALTED,
    TargetState.MASKED: StormTargetState.MASKED,
    TargetState.PREEMPTED: StormTargetState.PREEMPTED,
}
_METHODS = {
    SendMethod.X2APIC: StormSendMethod.X2APIC,
    SendMethod.XAPIC: StormSendMethod.XAPIC,
    SendMethod.PASSTHROUGH: StormSendMethod.PASSTHROUGH,
}
_UNSUPPORTED: dict[Pattern | TargetState | SendMethod, str] = {
    Pattern.RING: "the micro-guest has one sender",
    SendMethod.PV_HYPERCALL: "the micro-guest makes no hypercalls",
    SendMethod.SMP_CALL: "the micro-guest has no kernel",
}


@dataclass(frozen=True)
class MicroGuest:
    """The embedded guest.

    Attributes:
        n_vcpus: 2 to 64; vCPU 0 sends.
        pinned_cpus: the host CPU each vCPU is pinned to, or None.
        payload: what the vCPUs run.
    """

    n_vcpus: int
    pinned_cpus: tuple[int, ...] | None
    payload: Payload
    apic_ids: None = None
    tsc_khz: None = None  # KVM states it once there is a VM

    @classmethod
    def prepare(cls, n_vcpus: int, cpus: tuple[int, ...] | None) -> "MicroGuest":
        """Load the payload.

        Raises:
            HostError: it was not built.
        """
        return cls(n_vcpus, cpus, load_payload())

    def unsupported(self, scenario: Scenario) -> str | None:
        """Why this guest cannot run `scenario`, or None when it can."""
        if scenario.target_state == TargetState.PREEMPTED and self.pinned_cpus is None:
            return "only a target that is pinned to a CPU of its own can be kept off it"
        return unsupported(scenario)

    def vector(self, scenario: Scenario) -> int:
        """The interrupt vector the IPIs of `scenario` are sent with."""
        return MG_VECTOR_SELF if scenario.pattern == Pattern.SELF else MG_VECTOR_TARGET

    @property
    def max_count(self) -> int:
        """The largest storm, warm-up included, that the guest can log."""
        return max_count(self.n_vcpus)

    def targets(self, scenario: Scenario) -> tuple[int, ...]:
        """The vCPUs that handle each IPI of `scenario`."""
        if scenario.pattern == Pattern.SELF:
            return (0,)
        if scenario.pattern == Pattern.UNICAST:
            return (1,)
        return tuple(range(1, self.n_vcpus))

    def describe(self) -> GuestResult:
        """The guest as run.json shows it."""
        return micro_guest(self.n_vcpus, self.pinned_cpus, self.payload.sha256)

    def run(self, request: StormRequest, hooks: Hooks) -> Storm:
        """Boot a fresh VM, run one storm, take the VM down again.

        Raises:
            HostError: KVM refuses, or memory is short.
            MeasurementError: the guest hung, died, or lost IPIs.
        """
        scenario = request.scenario
        total = request.warmup + request.count
        logs = LogSizes(sends=total, receipts_per_vcpu=total)
        method = _METHODS[scenario.send_method]
        with Machine(self.payload, self.n_vcpus, logs, method) as machine:
            tsc_hz = (machine.tsc_khz or 0) * 1000 or request.tsc_hz
            machine.memory.write_params(
                pattern=_PATTERNS[scenario.pattern],
                target_state=_STATES[scenario.target_state],
                send_method=method,
                target=1,
                inject=StormInject[(request.inject or "none").upper().replace("-", "_")],
                max_incomplete=_MAX_INCOMPLETE,
                warmup=request.warmup,
                count=request.count,
                pace_cycles=request.pace_cycles,
                timeout_cycles=int(request.timeout_s * tsc_hz),
                handler_burn_cycles=request.handler_burn_cycles,
            )
            pace_s = request.pace_cycles / tsc_hz
            silence_s = request.timeout_s * (_MAX_INCOMPLETE + 1) + pace_s
            longest_s = limits.STORM_S + 2 * total * pace_s
            with self._rival(scenario, machine, total, longest_s) as its:
                storm = machine.run(
                    self.pinned_cpus,
                    hooks if its is None else _with_beat(hooks, its),
                    warmup=request.warmup,
                    silence_s=silence_s,
                    longest_s=longest_s,
                )
            storm = replace(storm, vector=self.vector(scenario))
            return storm if its is None else replace(storm, as_asked=its.seen / total)

    def _rival(
        self, scenario: Scenario, machine: Machine, sends: int, longest_s: float
    ) -> contextlib.AbstractContextManager[rival.Rival | None]:
        if scenario.target_state != TargetState.PREEMPTED or self.pinned_cpus is None:
            return contextlib.nullcontext()
        target = self.targets(scenario)[0]
        cpu = self.pinned_cpus[target]
        return rival.keep_preempting(
            machine.memory, target, cpu, sends=sends, longest_s=longest_s + _RIVAL_S
        )


def _with_beat(hooks: Hooks, its: rival.Rival) -> Hooks:
    """The same, and each tick lets the rival go on."""

    def tick(sent: int) -> None:
        its.live()
        hooks.tick(sent)

    return replace(hooks, tick=tick)


def unsupported(scenario: Scenario) -> str | None:
    """Why no micro-guest can run `scenario` on this host, or None when one can."""
    parts = (scenario.pattern, scenario.target_state, scenario.send_method)
    if scenario.send_method == SendMethod.PASSTHROUGH and (reason := passthrough.why_unsupported()):
        return reason
    if scenario.target_state == TargetState.PREEMPTED and (reason := rival.why_not()):
        return reason
    return next((_UNSUPPORTED[part] for part in parts if part in _UNSUPPORTED), None)


def max_count(n_vcpus: int) -> int:
    """The largest storm, warm-up included, that a guest of `n_vcpus` can log."""
    room = MAX_MEMORY - 4 * MIB - n_vcpus * 4096
    return min(MAX_COUNT, room // (SEND.itemsize + RECEIPT.itemsize * n_vcpus))
