# SPDX-License-Identifier: Apache-2.0
"""The table of scenarios: every kind of IPI ipitrace knows by name."""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum

from ipitrace.base.errors import UsageError


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


class ScenarioStatus(StrEnum):
    """What became of a scenario in a run."""

    MEASURED = "measured"
    UNSUPPORTED = "unsupported"  # by this guest or host; the row says why


SENDER = 0


class Mode(StrEnum):
    """How much watched a repetition."""

    OFF = "off"
    COUNTING = "counting"
    FULL = "full"


SCENARIOS: tuple[Scenario, ...] = (
    Scenario(
        "unicast-running",
        Pattern.UNICAST,
        TargetState.RUNNING,
        SendMethod.X2APIC,
        "one target, spinning in guest user mode",
    ),
    Scenario(
        "unicast-halted",
        Pattern.UNICAST,
        TargetState.HALTED,
        SendMethod.X2APIC,
        "one target in HLT, the host still polling for it if it polls",
    ),
    Scenario(
        "self",
        Pattern.SELF,
        TargetState.RUNNING,
        SendMethod.X2APIC,
        "the sender to itself",
    ),
    Scenario(
        "broadcast",
        Pattern.BROADCAST,
        TargetState.RUNNING,
        SendMethod.X2APIC,
        "one send to all other vCPUs, all spinning",
    ),
    Scenario(
        "unicast-blocked",
        Pattern.UNICAST,
        TargetState.BLOCKED,
        SendMethod.X2APIC,
        "one target in HLT for so long that its thread sleeps",
    ),
    Scenario(
        "unicast-running-kernel",
        Pattern.UNICAST,
        TargetState.RUNNING_KERNEL,
        SendMethod.X2APIC,
        "one target, spinning in guest kernel mode",
    ),
    Scenario(
        "unicast-masked",
        Pattern.UNICAST,
        TargetState.MASKED,
        SendMethod.X2APIC,
        "one target with interrupts off, which turns them on once the IPI has been sent",
    ),
    Scenario(
        "broadcast-halted",
        Pattern.BROADCAST,
        TargetState.HALTED,
        SendMethod.X2APIC,
        "one send to all other vCPUs, all in HLT",
    ),
    Scenario(
        "unicast-running-xapic",
        Pattern.UNICAST,
        TargetState.RUNNING,
        SendMethod.XAPIC,
        "as unicast-running, through the memory-mapped ICR",
    ),
    Scenario(
        "unicast-halted-xapic",
        Pattern.UNICAST,
        TargetState.HALTED,
        SendMethod.XAPIC,
        "as unicast-halted, through the memory-mapped ICR",
    ),
    Scenario(
        "self-xapic",
        Pattern.SELF,
        TargetState.RUNNING,
        SendMethod.XAPIC,
        "the sender to itself, through the memory-mapped ICR",
    ),
    Scenario(
        "broadcast-xapic",
        Pattern.BROADCAST,
        TargetState.RUNNING,
        SendMethod.XAPIC,
        "as broadcast, through the memory-mapped ICR",
    ),
    Scenario(
        "unicast-preempted",
        Pattern.UNICAST,
        TargetState.PREEMPTED,
        SendMethod.X2APIC,
        "one target whose thread is kept off its CPU until the IPI has been sent",
    ),
    Scenario(
        "ring",
        Pattern.RING,
        TargetState.RUNNING,
        SendMethod.X2APIC,
        "all pairs at once",
    ),
    Scenario(
        "unicast-running-smp-call",
        Pattern.UNICAST,
        TargetState.RUNNING,
        SendMethod.SMP_CALL,
        "as unicast-running, through the guest kernel's smp_call_function_single()",
    ),
    Scenario(
        "unicast-halted-smp-call",
        Pattern.UNICAST,
        TargetState.HALTED,
        SendMethod.SMP_CALL,
        "as unicast-halted, likewise",
    ),
    Scenario(
        "broadcast-pv",
        Pattern.BROADCAST,
        TargetState.RUNNING,
        SendMethod.PV_HYPERCALL,
        "one KVM_HC_SEND_IPI hypercall to all other vCPUs",
    ),
    Scenario(
        "unicast-running-passthrough",
        Pattern.UNICAST,
        TargetState.RUNNING,
        SendMethod.PASSTHROUGH,
        "through the posted-interrupt descriptor, without the hypervisor",
    ),
    Scenario(
        "unicast-halted-passthrough",
        Pattern.UNICAST,
        TargetState.HALTED,
        SendMethod.PASSTHROUGH,
        "as unicast-halted, through the descriptor",
    ),
    Scenario(
        "self-passthrough",
        Pattern.SELF,
        TargetState.RUNNING,
        SendMethod.PASSTHROUGH,
        "the sender to itself, through its own descriptor",
    ),
    Scenario(
        "broadcast-passthrough",
        Pattern.BROADCAST,
        TargetState.RUNNING,
        SendMethod.PASSTHROUGH,
        "to all other vCPUs, through one descriptor after the other",
    ),
    Scenario(
        "unicast-blocked-passthrough",
        Pattern.UNICAST,
        TargetState.BLOCKED,
        SendMethod.PASSTHROUGH,
        "as unicast-blocked, through the descriptor",
    ),
    Scenario(
        "unicast-preempted-passthrough",
        Pattern.UNICAST,
        TargetState.PREEMPTED,
        SendMethod.PASSTHROUGH,
        "as unicast-preempted, through the descriptor",
    ),
    Scenario(
        "broadcast-halted-passthrough",
        Pattern.BROADCAST,
        TargetState.HALTED,
        SendMethod.PASSTHROUGH,
        "as broadcast-halted, through one descriptor after the other",
    ),
)

DEFAULT_SCENARIOS = ("unicast-running", "unicast-halted", "self", "broadcast")
ALL = "all"


def select_scenarios(names: Iterable[str]) -> tuple[Scenario, ...]:
    """The scenarios of these names, each once, in the order asked; `all` is the whole table.

    Raises:
        UsageError: there is no scenario of a name.
    """
    by_name = {scenario.name: scenario for scenario in SCENARIOS}
    chosen: dict[str, Scenario] = {}
    for name in names:
        if name == ALL:
            chosen.update(by_name)
            continue
        if name not in by_name:
            close = get_close_matches(name, by_name, n=1)
            guess = f"Did you mean {close[0]}? " if close else ""
            raise UsageError(
                f"There is no scenario '{name}'.",
                f"{guess}Known: {', '.join(by_name)}; or {ALL}.",
            )
        chosen[name] = by_name[name]
    return tuple(chosen.values())
