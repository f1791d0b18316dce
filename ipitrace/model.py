# SPDX-License-Identifier: Apache-2.0
"""The words of the project as types: scenarios and what they are made of."""

from dataclasses import dataclass
from enum import StrEnum


class Pattern(StrEnum):
    """Who sends to whom."""

    UNICAST = "unicast"
    SELF = "self"
    BROADCAST = "broadcast"
    RING = "ring"


class TargetState(StrEnum):
    """What a target's vCPU does when the IPI is sent.

    `halted` is in HLT while the host may still be polling for it (halt_poll_ns);
    `blocked` is in HLT for so long that the host has put its thread to sleep. `masked`
    has interrupts off, and turns them on as soon as it sees that the IPI has been sent.
    """

    RUNNING = "running"
    RUNNING_KERNEL = "running-kernel"
    HALTED = "halted"
    BLOCKED = "blocked"
    PREEMPTED = "preempted"
    MASKED = "masked"


class SendMethod(StrEnum):
    """How the sender asks for the IPI; `smp-call` is the guest kernel's own function call."""

    X2APIC = "x2apic"
    XAPIC = "xapic"
    PV_HYPERCALL = "pv-hypercall"
    PASSTHROUGH = "passthrough"
    SMP_CALL = "smp-call"


@dataclass(frozen=True)
class Scenario:
    """One row of the scenario table: a kind of IPI that is measured by itself."""

    name: str
    pattern: Pattern
    target_state: TargetState
    send_method: SendMethod
    about: str


@dataclass(frozen=True)
class StormRequest:
    """What one storm is asked to do.

    Attributes:
        scenario: the kind of IPI.
        n_vcpus: vCPUs of the guest; vCPU 0 sends.
        count: measured sends, after `warmup` unmeasured ones.
        pace_cycles: guest TSC cycles from one acknowledgement to the next send.
        timeout_s: an IPI not acknowledged within this time counts as incomplete.
        inject: a fault made on purpose, to prove that it is told; None in real runs.
        handler_burn_cycles: cycles each handler wastes after its stamp, on purpose.
    """

    scenario: Scenario
    n_vcpus: int
    count: int
    warmup: int
    pace_cycles: int
    timeout_s: float = 5.0  # a starved host holds a vCPU up for more than a second
    inject: str | None = None
    handler_burn_cycles: int = 0


@dataclass(frozen=True)
class Summary:
    """A distribution of whole cycles. Every figure is one that was really measured."""

    count: int
    min: int
    p50: int
    p90: int
    p99: int
    max: int
