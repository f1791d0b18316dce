# SPDX-License-Identifier: Apache-2.0
"""The table of scenarios: every kind of IPI that ipitrace can measure by name."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum

from ipitrace.base.errors import UsageError


class Pattern(StrEnum):
    """Who sends to whom.

    `broadcast`: to all vCPUs except the sender; `broadcast-self`: to all vCPUs. In a `ring`, each
    vCPU sends to the next one. `multicast`: one send to some of the vCPUs. `unicast-logical`: to
    one vCPU, by its logical APIC id.
    """

    UNICAST = "unicast"
    SELF = "self"
    BROADCAST = "broadcast"
    RING = "ring"
    MULTICAST = "multicast"
    BROADCAST_SELF = "broadcast-self"
    UNICAST_LOGICAL = "unicast-logical"


class TargetState(StrEnum):
    """What a target's vCPU does when the IPI is sent.

    `halted`: the target is in HLT, and the host may still poll for it (halt_poll_ns).
    `blocked`: the target has been in HLT for so long that the host has put its thread to
    sleep. `masked`: the target has interrupts disabled, and enables them as soon as it sees
    that the IPI has been sent. `overcommitted`: the target spins, as all other vCPUs do, and each
    CPU is shared by two vCPUs: a thread may be switched out at any time, the sender's as well.
    `overcommitted-kernel`: the same, and all vCPUs but the sender spin in guest kernel mode.
    """

    RUNNING = "running"
    RUNNING_KERNEL = "running-kernel"
    HALTED = "halted"
    BLOCKED = "blocked"
    PREEMPTED = "preempted"
    MASKED = "masked"
    OVERCOMMITTED = "overcommitted"
    OVERCOMMITTED_KERNEL = "overcommitted-kernel"


class SendMethod(StrEnum):
    """How the sender sends the IPI.

    `smp-call` is the guest kernel's own function call. `hv-hypercall` is Hyper-V's hypercall
    HvCallSendSyntheticClusterIpi, and `hv-hypercall-ex` HvCallSendSyntheticClusterIpiEx.
    """

    X2APIC = "x2apic"
    XAPIC = "xapic"
    PV_HYPERCALL = "pv-hypercall"
    PASSTHROUGH = "passthrough"
    SMP_CALL = "smp-call"
    HV_HYPERCALL = "hv-hypercall"
    HV_HYPERCALL_EX = "hv-hypercall-ex"


OVERCOMMITTED = frozenset({TargetState.OVERCOMMITTED, TargetState.OVERCOMMITTED_KERNEL})
"""The states in which vCPUs share CPUs."""

HV_METHODS: frozenset[SendMethod] = frozenset({SendMethod.HV_HYPERCALL, SendMethod.HV_HYPERCALL_EX})
"""The methods that need a guest with Hyper-V's interface."""

LINUX_GUEST_ONLY: Mapping[str, str] = {
    SendMethod.SMP_CALL: "the micro-guest has no kernel",
}
"""Words that the micro-guest does not know, and why."""

MICRO_GUEST_ONLY: frozenset[str] = frozenset(
    {
        *(TargetState.MASKED, TargetState.PREEMPTED, *OVERCOMMITTED),
        *(Pattern.MULTICAST, Pattern.BROADCAST_SELF, Pattern.UNICAST_LOGICAL),
        *HV_METHODS,
    }
)
"""Words that ipitrace_storm, the kernel module of Linux guests, does not know."""


@dataclass(frozen=True)
class Scenario:
    """One row of the scenario table: a kind of IPI that is measured by itself."""

    name: str
    pattern: Pattern
    target_state: TargetState
    send_method: SendMethod
    about: str


class ScenarioStatus(StrEnum):
    """Whether a run measured a scenario."""

    MEASURED = "measured"
    UNSUPPORTED = "unsupported"  # by this guest or host; the row gives the reason


SENDER = 0
"""The vCPU that sends, unless all do."""


@dataclass(frozen=True)
class Route:
    """One sender of a storm, and the vCPUs that handle each of its IPIs."""

    sender: int
    targets: tuple[int, ...]


SENDERS_ONLY = frozenset({Pattern.SELF, Pattern.RING})
"""Patterns in which every target is a sender: its exits are counted as a sender's."""


def routes_of(pattern: Pattern, targets: Iterable[int]) -> tuple[Route, ...]:
    """The senders of a storm.

    Args:
        pattern: of its scenario.
        targets: the vCPUs that handle its IPIs; in a ring, each sends to the one after it.
    """
    handling = tuple(targets)
    if pattern != Pattern.RING:
        return (Route(SENDER, handling),)
    following = (*handling[1:], *handling[:1])
    return tuple(Route(vcpu, (after,)) for vcpu, after in zip(handling, following, strict=True))


class Mode(StrEnum):
    """How much ipitrace watches a repetition.

    STAGES records the events of the stages only. EVIDENCE records all events: they prove paths
    and reasons. COUNTING and FULL are in recordings of earlier versions, which counted and
    recorded all events.
    """

    OFF = "off"
    STAGES = "stages"
    EVIDENCE = "evidence"
    COUNTING = "counting"
    FULL = "full"


MODES = (Mode.OFF, Mode.STAGES, Mode.EVIDENCE)
"""The modes of a traced run."""

OLD_TRACED = (Mode.COUNTING, Mode.FULL)
"""The traced modes of recordings of version 1."""

PROVING = frozenset({Mode.EVIDENCE, Mode.FULL})
"""The modes in which events prove paths and reasons."""


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
        "one target in HLT; the host, if it polls, still polls for it",
    ),
    Scenario(
        "self",
        Pattern.SELF,
        TargetState.RUNNING,
        SendMethod.X2APIC,
        "the sender sends to itself",
    ),
    Scenario(
        "broadcast",
        Pattern.BROADCAST,
        TargetState.RUNNING,
        SendMethod.X2APIC,
        "one send to all other vCPUs, which all spin",
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
        "one target with interrupts disabled, which enables them once the IPI has been sent",
    ),
    Scenario(
        "broadcast-halted",
        Pattern.BROADCAST,
        TargetState.HALTED,
        SendMethod.X2APIC,
        "one send to all other vCPUs, which are all in HLT",
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
        "as self, through the memory-mapped ICR",
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
        "unicast-overcommit",
        Pattern.UNICAST,
        TargetState.OVERCOMMITTED,
        SendMethod.X2APIC,
        "one target; all vCPUs spin, and each CPU is shared by two of them",
    ),
    Scenario(
        "broadcast-overcommit",
        Pattern.BROADCAST,
        TargetState.OVERCOMMITTED,
        SendMethod.X2APIC,
        "one send to all other vCPUs; all vCPUs spin, and each CPU is shared by two of them",
    ),
    Scenario(
        "unicast-overcommit-kernel",
        Pattern.UNICAST,
        TargetState.OVERCOMMITTED_KERNEL,
        SendMethod.X2APIC,
        "as unicast-overcommit; all vCPUs but the sender spin in guest kernel mode",
    ),
    Scenario(
        "ring",
        Pattern.RING,
        TargetState.RUNNING,
        SendMethod.X2APIC,
        "each vCPU sends to the next one, all at once",
    ),
    Scenario(
        "ring-xapic",
        Pattern.RING,
        TargetState.RUNNING,
        SendMethod.XAPIC,
        "as ring, through the memory-mapped ICR",
    ),
    Scenario(
        "unicast-logical",
        Pattern.UNICAST_LOGICAL,
        TargetState.RUNNING,
        SendMethod.X2APIC,
        "as unicast-running, by the target's logical id (x2APIC cluster)",
    ),
    Scenario(
        "unicast-logical-xapic",
        Pattern.UNICAST_LOGICAL,
        TargetState.RUNNING,
        SendMethod.XAPIC,
        "as unicast-running-xapic, by the target's logical id (flat)",
    ),
    Scenario(
        "multicast-running",
        Pattern.MULTICAST,
        TargetState.RUNNING,
        SendMethod.X2APIC,
        "one send to each second vCPU of a cluster, by their logical ids; these spin",
    ),
    Scenario(
        "multicast-xapic",
        Pattern.MULTICAST,
        TargetState.RUNNING,
        SendMethod.XAPIC,
        "as multicast-running, through the memory-mapped ICR (flat)",
    ),
    Scenario(
        "broadcast-self",
        Pattern.BROADCAST_SELF,
        TargetState.RUNNING,
        SendMethod.X2APIC,
        "one send to all vCPUs, the sender included",
    ),
    Scenario(
        "broadcast-self-xapic",
        Pattern.BROADCAST_SELF,
        TargetState.RUNNING,
        SendMethod.XAPIC,
        "as broadcast-self, through the memory-mapped ICR",
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
        "as unicast-halted, through the guest kernel's smp_call_function_single()",
    ),
    Scenario(
        "broadcast-pv",
        Pattern.BROADCAST,
        TargetState.RUNNING,
        SendMethod.PV_HYPERCALL,
        "one KVM_HC_SEND_IPI hypercall to all other vCPUs",
    ),
    Scenario(
        "multicast-pv",
        Pattern.MULTICAST,
        TargetState.RUNNING,
        SendMethod.PV_HYPERCALL,
        "as multicast-running, by one KVM_HC_SEND_IPI hypercall",
    ),
    Scenario(
        "unicast-running-passthrough",
        Pattern.UNICAST,
        TargetState.RUNNING,
        SendMethod.PASSTHROUGH,
        "as unicast-running, through the posted-interrupt descriptor, without the hypervisor",
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
        "as self, through the sender's own descriptor",
    ),
    Scenario(
        "broadcast-passthrough",
        Pattern.BROADCAST,
        TargetState.RUNNING,
        SendMethod.PASSTHROUGH,
        "as broadcast, through one descriptor after the other",
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
    Scenario(
        "unicast-running-hv",
        Pattern.UNICAST,
        TargetState.RUNNING,
        SendMethod.HV_HYPERCALL,
        "as unicast-running, by Hyper-V's hypercall with a mask of processors",
    ),
    Scenario(
        "unicast-halted-hv",
        Pattern.UNICAST,
        TargetState.HALTED,
        SendMethod.HV_HYPERCALL,
        "as unicast-halted, by Hyper-V's hypercall with a mask of processors",
    ),
    Scenario(
        "broadcast-hv",
        Pattern.BROADCAST,
        TargetState.RUNNING,
        SendMethod.HV_HYPERCALL,
        "one Hyper-V hypercall with a mask of all other vCPUs",
    ),
    Scenario(
        "unicast-running-hv-ex",
        Pattern.UNICAST,
        TargetState.RUNNING,
        SendMethod.HV_HYPERCALL_EX,
        "as unicast-running, by Hyper-V's hypercall with a sparse set of processors",
    ),
    Scenario(
        "broadcast-self-hv-ex",
        Pattern.BROADCAST_SELF,
        TargetState.RUNNING,
        SendMethod.HV_HYPERCALL_EX,
        "one Hyper-V hypercall to all vCPUs, which include the sender",
    ),
)

DEFAULT_SCENARIOS = ("unicast-running", "unicast-halted", "self", "broadcast")
ALL = "all"


def select_scenarios(names: Iterable[str]) -> tuple[Scenario, ...]:
    """The scenarios with these names, each once, in the order given; `all` is the whole table.

    Raises:
        UsageError: there is no scenario with one of the names.
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
