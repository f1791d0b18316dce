# SPDX-License-Identifier: Apache-2.0
"""The stages of an IPI: one table, in the expected order."""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from ipitrace.words.events import Kind


class Stage(IntEnum):
    """A stage's column in the arrays of stamps."""

    SEND = 0
    SENDER_EXIT = 1
    IPI = 2
    ACCEPT = 3
    APICV_ACCEPT = 4
    KICK = 5
    ICR_WRITE = 6
    SENDER_ENTRY = 7
    SENT = 8
    TARGET_INTERRUPT = 9
    TARGET_EXIT = 10
    SCHED_IN = 11
    WAKEUP = 12
    INJECT = 13
    KVM_EOI = 14
    TARGET_ENTRY = 15
    HANDLER = 16
    EOI = 17
    ACK = 18


GUEST_STAMPS = frozenset({Stage.SEND, Stage.SENT, Stage.HANDLER, Stage.EOI, Stage.ACK})
"""Stamped by the guest itself; all others are host events."""

NOT_CRITICAL = frozenset(
    {Stage.ICR_WRITE, Stage.SENDER_ENTRY, Stage.SENT, Stage.KVM_EOI, Stage.EOI, Stage.ACK}
)
"""Stages that do not lead from the send to the handler: the sender's later ones, and the end."""


@dataclass(frozen=True)
class StageSpec:
    """A stage, the side whose vCPU it happens on (`sender` or `target`), and one sentence."""

    stage: Stage
    side: str
    meaning: str

    @property
    def name(self) -> str:
        """The spelling in tables and columns."""
        return self.stage.name.lower()

    @property
    def guest(self) -> bool:
        """Whether the guest itself stamps it."""
        return self.stage in GUEST_STAMPS

    @property
    def critical(self) -> bool:
        """Whether it lies between the send and the handler."""
        return self.stage not in NOT_CRITICAL


STAGES: tuple[StageSpec, ...] = (
    StageSpec(Stage.SEND, "sender", "before the instruction that sends"),
    StageSpec(Stage.SENDER_EXIT, "sender", "kvm_exit of the exit in which KVM handles the send"),
    StageSpec(Stage.IPI, "sender", "kvm_apic_ipi or kvm_hv_send_ipi(_ex): KVM sends the IPI"),
    StageSpec(Stage.ACCEPT, "sender", "kvm_apic_accept_irq: the target's APIC accepts the IPI"),
    StageSpec(Stage.APICV_ACCEPT, "sender", "kvm_apicv_accept_irq: the IPI was posted"),
    StageSpec(Stage.KICK, "sender", "ipi_send_cpu or doorbell to the target's CPU"),
    StageSpec(Stage.ICR_WRITE, "sender", "kvm_msr or kvm_apic: the ICR write"),
    StageSpec(Stage.SENDER_ENTRY, "sender", "kvm_entry that ends the sender's exit"),
    StageSpec(Stage.SENT, "sender", "after the instruction that sends"),
    StageSpec(Stage.TARGET_INTERRUPT, "target", "the host's interrupt interrupts the target"),
    StageSpec(Stage.TARGET_EXIT, "target", "kvm_exit after which KVM can inject the interrupt"),
    StageSpec(Stage.SCHED_IN, "target", "the target's thread gets its CPU"),
    StageSpec(Stage.WAKEUP, "target", "kvm_vcpu_wakeup: the target leaves HLT"),
    StageSpec(Stage.INJECT, "target", "kvm_inj_virq: KVM injects the interrupt"),
    StageSpec(Stage.KVM_EOI, "target", "kvm_eoi of the vector"),
    StageSpec(Stage.TARGET_ENTRY, "target", "kvm_entry that leads to the handler"),
    StageSpec(Stage.HANDLER, "target", "the handler's first instruction"),
    StageSpec(Stage.EOI, "target", "after the handler's EOI"),
    StageSpec(Stage.ACK, "sender", "the sender has seen the acknowledgement"),
)

CRITICAL = np.array([spec.critical for spec in STAGES])
"""Which columns lie between the send and the handler."""

HOST_INTERRUPTS = (
    Kind.RESCHEDULE_ENTRY,
    Kind.CALL_FUNCTION_ENTRY,
    Kind.CALL_FUNCTION_SINGLE_ENTRY,
)
ICR_WRITES = (Kind.KVM_MSR, Kind.KVM_APIC)
HV_SENDS = (Kind.KVM_HV_SEND_IPI, Kind.KVM_HV_SEND_IPI_EX)

KIND_OF_STAGE = {
    Stage.SENDER_EXIT: Kind.KVM_EXIT,
    Stage.IPI: Kind.KVM_APIC_IPI,
    Stage.ACCEPT: Kind.KVM_APIC_ACCEPT_IRQ,
    Stage.APICV_ACCEPT: Kind.KVM_APICV_ACCEPT_IRQ,
    Stage.KICK: Kind.IPI_SEND_CPU,
    Stage.SENDER_ENTRY: Kind.KVM_ENTRY,
    Stage.TARGET_INTERRUPT: Kind.RESCHEDULE_ENTRY,
    Stage.TARGET_EXIT: Kind.KVM_EXIT,
    Stage.SCHED_IN: Kind.SCHED_SWITCH,
    Stage.WAKEUP: Kind.KVM_VCPU_WAKEUP,
    Stage.INJECT: Kind.KVM_INJ_VIRQ,
    Stage.KVM_EOI: Kind.KVM_EOI,
    Stage.TARGET_ENTRY: Kind.KVM_ENTRY,
}
"""The usual kind of event of each host stage that is recorded in the mode STAGES."""

STAGE_KINDS = frozenset(
    {
        *(Kind.KVM_EXIT, Kind.KVM_ENTRY, Kind.KVM_APIC_IPI, *HV_SENDS),
        *(Kind.KVM_APIC_ACCEPT_IRQ, Kind.KVM_APICV_ACCEPT_IRQ, Kind.KVM_INJ_VIRQ),
        *(Kind.KVM_EOI, Kind.KVM_PV_EOI, Kind.KVM_VCPU_WAKEUP, Kind.SCHED_SWITCH),
        *(Kind.IPI_SEND_CPU, Kind.KVM_AVIC_DOORBELL, *HOST_INTERRUPTS),
        Kind.KVM_WRITE_TSC_OFFSET,
    }
)
"""The host events that stages between the send and the end of interrupt are made of, and the one
that tells where a guest's clock changed."""
