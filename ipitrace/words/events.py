# SPDX-License-Identifier: Apache-2.0
"""The host events that ipitrace records or counts: one table."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from ipitrace.words.exit_reasons import Isa, reason_name


class Kind(IntEnum):
    """`enum ipitrace_kind`: the kind of a host event; the header defines the words of each kind."""

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
    KVM_PLE_WINDOW_UPDATE = 32
    KVM_HV_SEND_IPI = 33
    KVM_HV_SEND_IPI_EX = 34
    KVM_AVIC_UNACCELERATED_ACCESS = 35
    KVM_VMGEXIT_ENTER = 36
    KVM_XEN_HYPERCALL = 37
    KVM_PV_TLB_FLUSH = 38


NR_KINDS: Final = len(Kind)

_NO_VECTOR: Final = 0xFFFF
_NO_REASON: Final = 0xFFFF_FFFF
_VECTOR_UNKNOWN: Final = "vector not known"
_HV_SETS: Final = {0: "a sparse set", 1: "all processors"}  # enum HV_GENERIC_SET_FORMAT


@dataclass(frozen=True)
class HostEvent:
    """One kind of host event.

    Attributes:
        meaning: one sentence.
        values: how a record's values are printed: a format string of `arg`, `word` and `detail`,
            or a function of the three. bpf/ipitrace_events.h defines them.
        recorded: each event is recorded; otherwise events are only counted.
        zero_is_unknown: `detail` is not always known to the kernel; 0 is then recorded as null.
    """

    kind: Kind
    meaning: str
    values: str | Callable[[int, int, int | None], str] = ""
    recorded: bool = True
    zero_is_unknown: bool = False

    @property
    def name(self) -> str:
        """The tracepoint's or function's name, as the kernel spells it."""
        return self.kind.name.lower()

    def describe(self, arg: int, word: int, detail: int | None) -> str:
        """A record's values as text; `detail` is None where it is not known."""
        if detail is None and not self.zero_is_unknown:
            return f"arg {arg:#x}, word {word:#x}"
        if callable(self.values):
            return self.values(arg, word, detail)
        return self.values.format(arg=arg, word=word, detail=detail)


def _exit(arg: int, word: int, detail: int | None) -> str:
    if not detail and word == _NO_REASON:
        return "reason not recorded"
    return f"{reason_name(detail or 0, word)}, info {arg:#x}"


def _eoi(_arg: int, _word: int, detail: int | None) -> str:
    return "nothing in service" if detail == _NO_VECTOR else f"vector {detail:#x}"


def _msr(arg: int, word: int, detail: int | None) -> str:
    fault = ", which raises an exception" if (detail or 0) & 2 else ""
    return f"{_access(detail)} of MSR {word:#x}, data {arg:#x}{fault}"


def _register(arg: int, word: int, detail: int | None) -> str:
    return f"{_access(detail)} of register {word:#x}, value {arg:#x}"


def _access(detail: int | None) -> str:
    return "write" if (detail or 0) & 1 else "read"


def _unaccelerated(_arg: int, word: int, detail: int | None) -> str:
    when = "after" if (detail or 0) & 2 else "before"
    return f"{_access(detail)} of register {word:#x}, {when} the instruction"


def _vmgexit(arg: int, word: int, _detail: int | None) -> str:
    return f"{reason_name(Isa.SVM, word)}, info {arg:#x}"


def _wakeup(arg: int, _word: int, detail: int | None) -> str:
    return f"after {arg} ns of {'waiting' if (detail or 0) & 1 else 'polling'}"


def _inhibit(arg: int, word: int, detail: int | None) -> str:
    return f"reason {word} {'set' if detail else 'cleared'}, inhibits {arg:#x}"


def _switch(_arg: int, word: int, detail: int | None) -> str:
    return f"in, after thread {word}" if detail else f"out, for thread {word}"


def _processors(arg: int, word: int, detail: int | None) -> str:
    return f"vector {detail:#x}, {_HV_SETS.get(word, f'set of format {word}')}, banks {arg:#x}"


def _posted(_arg: int, _word: int, detail: int | None) -> str:
    return _VECTOR_UNKNOWN if detail is None else f"vector {detail:#x}"


HOST_EVENTS: Final = (
    HostEvent(
        Kind.KVM_EXIT,
        "The vCPU exited from the guest to KVM, with the reason.",
        _exit,
        zero_is_unknown=True,
    ),
    HostEvent(Kind.KVM_ENTRY, "KVM is about to enter the guest."),
    HostEvent(
        Kind.KVM_APIC_IPI,
        "KVM's local APIC sends an IPI that the guest requested.",
        "ICR {word:#x}, destination {arg:#x}",
    ),
    HostEvent(
        Kind.KVM_APIC_ACCEPT_IRQ,
        "The destination's local APIC accepts an interrupt.",
        "vector {detail:#x}, APIC {word}",
    ),
    HostEvent(
        Kind.KVM_APICV_ACCEPT_IRQ,
        "KVM passed the interrupt to APICv or AVIC.",
        "vector {detail:#x}, APIC {word}",
    ),
    HostEvent(Kind.KVM_EOI, "KVM handles an end of interrupt.", _eoi),
    HostEvent(
        Kind.KVM_PV_EOI,
        "KVM finds an end of interrupt that the guest left in memory.",
        "vector {detail:#x}",
    ),
    HostEvent(
        Kind.KVM_MSR,
        "The guest accesses the x2APIC ICR or self-IPI register through an exit.",
        _msr,
    ),
    HostEvent(Kind.KVM_APIC, "KVM accesses the ICR of the virtual APIC for the guest.", _register),
    HostEvent(
        Kind.KVM_HYPERCALL,
        "The guest sends IPIs by hypercall.",
        "number {word}, first argument {arg:#x}",
    ),
    HostEvent(
        Kind.KVM_INJ_VIRQ, "KVM injects an interrupt at the next entry.", "vector {detail:#x}"
    ),
    HostEvent(Kind.KVM_VCPU_WAKEUP, "A halted vCPU wakes up.", _wakeup),
    HostEvent(Kind.KVM_EMULATE_INSN, "KVM emulates an instruction for the guest.", recorded=False),
    HostEvent(
        Kind.KVM_AVIC_INCOMPLETE_IPI,
        "AVIC could not deliver an IPI by itself, with the cause.",
        "cause {word}, ICR {arg:#x}, index {detail}",
    ),
    HostEvent(
        Kind.KVM_AVIC_KICK_VCPU_SLOWPATH,
        "AVIC found that the target is not running, and KVM searches for it.",
        "index {word}, ICR {arg:#x}",
    ),
    HostEvent(
        Kind.KVM_AVIC_DOORBELL,
        "KVM rings the AVIC doorbell of the CPU on which the target runs.",
        "vCPU {detail}, APIC {word}",
    ),
    HostEvent(
        Kind.KVM_APICV_INHIBIT_CHANGED, "APICv or AVIC is switched off or on for the VM.", _inhibit
    ),
    HostEvent(
        Kind.KVM_WRITE_TSC_OFFSET,
        "A vCPU's TSC offset is written.",
        "vCPU {word}, new offset {arg:#x}",
    ),
    HostEvent(
        Kind.KVM_PI_IRTE_UPDATE,
        "Posting of a device's interrupt to a vCPU is switched on or off.",
        "host interrupt {word}, GSI {arg}, guest vector {detail:#x}",
    ),
    HostEvent(
        Kind.RESCHEDULE_ENTRY,
        "A reschedule IPI interrupts the vCPU's thread.",
        "vector {detail:#x}",
    ),
    HostEvent(
        Kind.CALL_FUNCTION_ENTRY,
        "A call-function IPI interrupts the vCPU's thread.",
        "vector {detail:#x}",
    ),
    HostEvent(
        Kind.CALL_FUNCTION_SINGLE_ENTRY,
        "A single call-function IPI interrupts the vCPU's thread.",
        "vector {detail:#x}",
    ),
    HostEvent(Kind.IPI_SEND_CPU, "The vCPU's thread sends a physical IPI.", "to CPU {word}"),
    HostEvent(Kind.SCHED_SWITCH, "The vCPU's thread is switched in or out.", _switch),
    HostEvent(Kind.PI_WAKEUP_HANDLER, "A posted interrupt arrives for a blocked vCPU."),
    HostEvent(
        Kind.SYSVEC_KVM_POSTED_INTR_WAKEUP_IPI,
        "A posted interrupt arrives for a blocked vCPU (outside KVM).",
    ),
    HostEvent(
        Kind.SMP_KVM_POSTED_INTR_IPI,
        "A posted interrupt arrived after its vCPU had left the guest (up to Linux 5.7).",
    ),
    HostEvent(
        Kind.VMX_DELIVER_INTERRUPT,
        "KVM delivers an interrupt to a vCPU, and posts it if possible.",
        _posted,
        zero_is_unknown=True,
    ),
    HostEvent(
        Kind.VMX_DELIVER_POSTED_INTERRUPT,
        "KVM posts an interrupt to a vCPU.",
        _posted,
        zero_is_unknown=True,
    ),
    HostEvent(
        Kind.HANDLE_FASTPATH_SET_MSR_IRQOFF,
        "The fastpath handled the vCPU's MSR write.",
        "returned {word}",
    ),
    HostEvent(
        Kind.HANDLE_FASTPATH_WRMSR, "The fastpath handled the vCPU's WRMSR.", "returned {word}"
    ),
    HostEvent(
        Kind.HANDLE_FASTPATH_WRMSR_IMM,
        "The fastpath handled the vCPU's WRMSR with an immediate MSR number.",
        "returned {word}",
    ),
    HostEvent(
        Kind.KVM_PLE_WINDOW_UPDATE,
        "KVM changes how long the vCPU may spin before it exits (pause-loop exiting).",
        "window {arg} becomes {word}",
    ),
    HostEvent(
        Kind.KVM_HV_SEND_IPI,
        "The guest sends an IPI by Hyper-V's hypercall, to a mask of processors.",
        "vector {detail:#x}, processors {arg:#x}",
    ),
    HostEvent(
        Kind.KVM_HV_SEND_IPI_EX,
        "The guest sends an IPI by Hyper-V's extended hypercall, to a set of processors.",
        _processors,
    ),
    HostEvent(
        Kind.KVM_AVIC_UNACCELERATED_ACCESS,
        "AVIC leaves the guest's access to the ICR or the self-IPI register to KVM.",
        _unaccelerated,
    ),
    HostEvent(
        Kind.KVM_VMGEXIT_ENTER,
        "A guest with SEV-ES asks KVM for what it could not do itself, with the reason.",
        _vmgexit,
    ),
    HostEvent(
        Kind.KVM_XEN_HYPERCALL,
        "A Xen guest calls KVM.",
        "number {word}, first argument {arg:#x}",
    ),
    HostEvent(
        Kind.KVM_PV_TLB_FLUSH,
        "KVM flushes the TLB of a vCPU that was preempted, in place of IPIs from other vCPUs.",
        recorded=False,
    ),
)
"""In the order of Kind."""

HOST_EVENT_OF: Final = {event.kind: event for event in HOST_EVENTS}
HOST_EVENT_BY_NAME: Final = {event.name: event for event in HOST_EVENTS}
