# SPDX-License-Identifier: Apache-2.0
"""The stages an IPI can go through: one table, in the order they are expected."""

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

BESIDE_THE_WAY = frozenset(
    {Stage.ICR_WRITE, Stage.SENDER_ENTRY, Stage.SENT, Stage.KVM_EOI, Stage.EOI, Stage.ACK}
)
"""What does not lead from the send to the handler: the sender going on, and the end."""


@dataclass(frozen=True)
class StageSpec:
    """What a stage is: whose vCPU (`sender` or `target`) it happens on, and one sentence."""

    stage: Stage
    side: str
    meaning: str

    @property
    def name(self) -> str:
        """As tables and columns spell it."""
        return self.stage.name.lower()

    @property
    def guest(self) -> bool:
        """The guest's own stamp."""
        return self.stage in GUEST_STAMPS

    @property
    def critical(self) -> bool:
        """It lies on the interrupt's way from the send to the handler."""
        return self.stage not in BESIDE_THE_WAY


STAGES: tuple[StageSpec, ...] = (
    StageSpec(Stage.SEND, "sender", "before the instruction that sends"),
    StageSpec(Stage.SENDER_EXIT, "sender", "kvm_exit during which KVM takes the IPI on"),
    StageSpec(Stage.IPI, "sender", "kvm_apic_ipi: KVM takes the IPI on"),
    StageSpec(Stage.ACCEPT, "sender", "kvm_apic_accept_irq: the target's APIC has it"),
    StageSpec(Stage.APICV_ACCEPT, "sender", "kvm_apicv_accept_irq: it was posted"),
    StageSpec(Stage.KICK, "sender", "ipi_send_cpu or doorbell to the target's CPU"),
    StageSpec(Stage.ICR_WRITE, "sender", "kvm_msr or kvm_apic: the ICR write"),
    StageSpec(Stage.SENDER_ENTRY, "sender", "kvm_entry that ends it"),
    StageSpec(Stage.SENT, "sender", "after the instruction that sends"),
    StageSpec(Stage.TARGET_INTERRUPT, "target", "the host's interrupt stops the target"),
    StageSpec(Stage.TARGET_EXIT, "target", "kvm_exit that lets the interrupt in"),
    StageSpec(Stage.SCHED_IN, "target", "the target's thread gets its CPU"),
    StageSpec(Stage.WAKEUP, "target", "kvm_vcpu_wakeup: HLT is over"),
    StageSpec(Stage.INJECT, "target", "kvm_inj_virq"),
    StageSpec(Stage.KVM_EOI, "target", "kvm_eoi of the vector"),
    StageSpec(Stage.TARGET_ENTRY, "target", "kvm_entry that leads to the handler"),
    StageSpec(Stage.HANDLER, "target", "the handler's first instruction"),
    StageSpec(Stage.EOI, "target", "after the handler's EOI"),
    StageSpec(Stage.ACK, "sender", "the sender has seen the acknowledgement"),
)

CRITICAL = np.array([spec.critical for spec in STAGES])
"""Which columns are on the interrupt's way."""

HOST_INTERRUPTS = (
    Kind.RESCHEDULE_ENTRY,
    Kind.CALL_FUNCTION_ENTRY,
    Kind.CALL_FUNCTION_SINGLE_ENTRY,
)
ICR_WRITES = (Kind.KVM_MSR, Kind.KVM_APIC)
