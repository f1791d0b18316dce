# SPDX-License-Identifier: Apache-2.0
"""The driver of the micro-guest: a new VM for each storm."""

import contextlib
from collections.abc import Iterable
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
from ipitrace.host.cpus import Pinning
from ipitrace.host.kvm_extensions import HYPERV_IPIS, why_not_offered
from ipitrace.recording.guest import GuestResult, micro_guest
from ipitrace.storm import limits
from ipitrace.storm.driver import Hooks, Storm, StormRequest
from ipitrace.storm.micro import hypercall, passthrough, preemptor
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
    HV_METHODS,
    LINUX_GUEST_ONLY,
    OVERCOMMITTED,
    Pattern,
    Scenario,
    SendMethod,
    TargetState,
    routes_of,
)

NOT_SHARED = Pinning(None, overcommitted=True, why="no CPUs were chosen for vCPUs to share")
MIN_VCPUS = 2
MAX_VCPUS = MG_MAX_VCPUS
MAX_COUNT = 10_000_000
_MAX_INCOMPLETE = 3
_FEWEST_TARGETS = 2  # of a multicast
_FOUR_VCPUS = "micro:4"
# vCPUs that one logical destination can name (SDM vol. 3A, 11.6.2.2 and 11.12.10.2).
_FLAT_IDS, _CLUSTER_IDS = 8, 16
_SENDER_HANDLES = {Pattern.SELF, Pattern.BROADCAST_SELF, Pattern.RING}
_PREEMPTOR_S = 60.0  # the preempting process's time limit beyond the storm's

# A word's number is that of the same name, but for these.
_OTHER_NAMES = {
    TargetState.RUNNING: StormTargetState.RUNNING_USER,
    TargetState.BLOCKED: StormTargetState.HALTED,
    TargetState.OVERCOMMITTED: StormTargetState.RUNNING_USER,
    TargetState.OVERCOMMITTED_KERNEL: StormTargetState.RUNNING_KERNEL,
}
_PATTERNS = {pattern: StormPattern[pattern.name] for pattern in Pattern}
_STATES = {
    state: _OTHER_NAMES[state] if state in _OTHER_NAMES else StormTargetState[state.name]
    for state in TargetState
}
_METHODS = {method: StormSendMethod[method.name] for method in SendMethod}


@dataclass(frozen=True)
class MicroGuest:
    """The built-in guest.

    Attributes:
        n_vcpus: 2 to 64; vCPU 0 sends.
        pinned_cpus: the host CPU that each vCPU is pinned to, or None.
        payload: the program that the vCPUs run.
        shared: where the vCPUs run in scenarios in which they share CPUs.
    """

    n_vcpus: int
    pinned_cpus: tuple[int, ...] | None
    payload: Payload
    shared: Pinning = NOT_SHARED
    apic_ids: None = None
    tsc_khz: None = None  # KVM reports it when there is a VM

    @classmethod
    def prepare(
        cls, n_vcpus: int, cpus: tuple[int, ...] | None, shared: Pinning = NOT_SHARED
    ) -> "MicroGuest":
        """Load the payload.

        Raises:
                HostError: the payload was not built.
        """
        return cls(n_vcpus, cpus, load_payload(), shared)

    def unsupported(self, scenario: Scenario) -> str | None:
        """Why this guest cannot run `scenario`, or None if it can."""
        if scenario.target_state == TargetState.PREEMPTED and self.pinned_cpus is None:
            return "a target can only be preempted if it is pinned to a CPU of its own"
        if scenario.pattern == Pattern.MULTICAST and len(self.targets(scenario)) < _FEWEST_TARGETS:
            return f"a multicast to two of the other vCPUs needs four vCPUs: --vm {_FOUR_VCPUS}"
        if scenario.target_state in OVERCOMMITTED and self.shared.cpus is None:
            return self.shared.why
        return unsupported(scenario)

    def vector(self, scenario: Scenario) -> int:
        """The interrupt vector of the IPIs of `scenario`."""
        return MG_VECTOR_SELF if scenario.pattern in _SENDER_HANDLES else MG_VECTOR_TARGET

    @property
    def max_count(self) -> int:
        """The largest storm, including the warm-up, that the guest can log."""
        return max_count(self.n_vcpus)

    def targets(self, scenario: Scenario) -> tuple[int, ...]:
        """The vCPUs that handle each IPI of `scenario`."""
        if scenario.pattern == Pattern.SELF:
            return (0,)
        if scenario.pattern in {Pattern.UNICAST, Pattern.UNICAST_LOGICAL}:
            return (1,)
        if scenario.pattern == Pattern.MULTICAST:
            ids = _FLAT_IDS if scenario.send_method == SendMethod.XAPIC else _CLUSTER_IDS
            return tuple(range(1, min(self.n_vcpus, ids), 2))
        if scenario.pattern in {Pattern.BROADCAST_SELF, Pattern.RING}:
            return tuple(range(self.n_vcpus))
        return tuple(range(1, self.n_vcpus))

    def cpus_in(self, scenario: Scenario) -> tuple[int, ...] | None:
        """The host CPU that each vCPU is pinned to in storms of `scenario`, or None."""
        if scenario.target_state in OVERCOMMITTED:
            return self.shared.cpus
        return self.pinned_cpus

    def describe(self) -> GuestResult:
        """The guest as in run.json."""
        return micro_guest(self.n_vcpus, self.pinned_cpus, self.payload.sha256)

    def run(self, request: StormRequest, hooks: Hooks) -> Storm:
        """Boot a new VM, run one storm, and destroy the VM.

        Raises:
            HostError: KVM refuses, or there is not enough memory.
            MeasurementError: the guest hung, died, or lost IPIs.
        """
        scenario = request.scenario
        total = request.warmup + request.count
        targets = self.targets(scenario)
        senders = len(routes_of(scenario.pattern, targets))
        logs = LogSizes(sends=total, receipts_per_vcpu=total, senders=senders)
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
                target_mask=_mask(targets) if scenario.pattern == Pattern.MULTICAST else 0,
            )
            pace_s = request.pace_cycles / tsc_hz
            silence_s = request.timeout_s * (_MAX_INCOMPLETE + 1) + pace_s
            longest_s = limits.STORM_S + 2 * total * pace_s
            with self._preemptor(scenario, machine, total, longest_s) as preempting:
                storm = machine.run(
                    self.cpus_in(scenario),
                    hooks if preempting is None else _with_heartbeat(hooks, preempting),
                    warmup=request.warmup,
                    silence_s=silence_s,
                    longest_s=longest_s,
                )
            storm = replace(storm, vector=self.vector(scenario))
            return storm if preempting is None else replace(storm, as_asked=preempting.seen / total)

    def _preemptor(
        self, scenario: Scenario, machine: Machine, sends: int, longest_s: float
    ) -> contextlib.AbstractContextManager[preemptor.Preemptor | None]:
        if scenario.target_state != TargetState.PREEMPTED or self.pinned_cpus is None:
            return contextlib.nullcontext()
        target = self.targets(scenario)[0]
        cpu = self.pinned_cpus[target]
        return preemptor.keep_preempting(
            machine.memory, target, cpu, sends=sends, longest_s=longest_s + _PREEMPTOR_S
        )


def _with_heartbeat(hooks: Hooks, preempting: preemptor.Preemptor) -> Hooks:
    """The same hooks, with a heartbeat for the preempting process on each tick."""

    def tick(sent: int) -> float | None:
        preempting.heartbeat()
        return hooks.tick(sent)

    return replace(hooks, tick=tick)


def _mask(vcpus: Iterable[int]) -> int:
    return sum(1 << vcpu for vcpu in vcpus)


def unsupported(scenario: Scenario) -> str | None:
    """Why no micro-guest can run `scenario` on this host, or None if one can."""
    parts = (scenario.pattern, scenario.target_state, scenario.send_method)
    if scenario.send_method == SendMethod.PASSTHROUGH and (reason := passthrough.why_unsupported()):
        return reason
    if scenario.send_method in HV_METHODS and (
        reason := why_not_offered("IPIs by Hyper-V's hypercalls", *HYPERV_IPIS)
    ):
        return reason
    if scenario.target_state == TargetState.PREEMPTED and (reason := preemptor.why_not()):
        return reason
    if scenario.send_method == SendMethod.PV_HYPERCALL and (reason := hypercall.why_unsupported()):
        return reason
    return next((LINUX_GUEST_ONLY[part] for part in parts if part in LINUX_GUEST_ONLY), None)


def max_count(n_vcpus: int) -> int:
    """The largest storm, including the warm-up, that a guest of `n_vcpus` can log."""
    room = MAX_MEMORY - 4 * MIB - n_vcpus * 4096
    return min(MAX_COUNT, room // (SEND.itemsize + RECEIPT.itemsize * n_vcpus))
