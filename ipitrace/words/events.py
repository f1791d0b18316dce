# SPDX-License-Identifier: Apache-2.0
"""The host events that ipitrace records or counts."""

from enum import IntEnum
from typing import Final


class Kind(IntEnum):
    """`enum ipitrace_kind`: what a host event is; the header says what its words hold."""

    KVM_EXIT = 0
    KVM_ENTRY = 1
    KVM_APIC_IPI = 2
    KVM_APIC_ACCEPT_IRQ = 3
    KVM_APICV_ACCEPT_IRQ = 4
    KVM_EOI = 5
    KVM_PV_EOI = 6
    KVM_MSR = 7
    KVM_APIC = 8
    KVM_HYPERCALL = 9
    KVM_INJ_VIRQ = 10
    KVM_VCPU_WAKEUP = 11
    KVM_EMULATE_INSN = 12
    KVM_AVIC_INCOMPLETE_IPI = 13
    KVM_AVIC_KICK_VCPU_SLOWPATH = 14
    KVM_AVIC_DOORBELL = 15
    KVM_APICV_INHIBIT_CHANGED = 16
    KVM_WRITE_TSC_OFFSET = 17
    KVM_PI_IRTE_UPDATE = 18
    RESCHEDULE_ENTRY = 19
    CALL_FUNCTION_ENTRY = 20
    CALL_FUNCTION_SINGLE_ENTRY = 21
    IPI_SEND_CPU = 22
    SCHED_SWITCH = 23
    PI_WAKEUP_HANDLER = 24
    SYSVEC_KVM_POSTED_INTR_WAKEUP_IPI = 25
    SMP_KVM_POSTED_INTR_IPI = 26
    VMX_DELIVER_INTERRUPT = 27
    VMX_DELIVER_POSTED_INTERRUPT = 28
    HANDLE_FASTPATH_SET_MSR_IRQOFF = 29
    HANDLE_FASTPATH_WRMSR = 30
    HANDLE_FASTPATH_WRMSR_IMM = 31


NR_KINDS: Final = len(Kind)
