# SPDX-License-Identifier: Apache-2.0
"""The table of the traced host events."""

from dataclasses import dataclass, replace
from typing import Final

from ipitrace.words.events import HOST_EVENT_OF, Kind
from ipitrace.words.stages import STAGE_KINDS


@dataclass(frozen=True)
class Field:
    """A value that a probe reads: its name in the BPF source, and its names in kernels.

    `spellings` are tried in order, the newest kernel first, as argument names of the raw
    tracepoint or function and as column names of the classic tracepoint. `columns` replaces
    them for the classic tracepoint if the two differ.
    """

    name: str
    spellings: tuple[str, ...]
    columns: tuple[str, ...] = ()
    optional: bool = False

    @property
    def column_spellings(self) -> tuple[str, ...]:
        """The possible names of this value in a tracefs `format` file."""
        return self.columns or self.spellings


@dataclass(frozen=True)
class EventSpec:
    """One event: its kind, its place in tracefs, and the values that are read.

    `prototypes` are its known argument lists, the newest first, each as "name:shape ..."
    (shapes as in btf.Arg): they name the arguments on kernels whose BTF has only their types.

    An event with a `symbol` is not a tracepoint but a kernel function of that name; with
    `on_return` the function's return is traced. `any_context`: it runs in the context of any
    interrupted thread, on behalf of any VM.
    """

    kind: Kind
    category: str
    fields: tuple[Field, ...] = ()
    prototypes: tuple[str, ...] = ()
    symbol: str = ""
    on_return: bool = False
    any_context: bool = False

    @property
    def name(self) -> str:
        """ipitrace's name of the event: a tracepoint's name as in the kernel and tracefs."""
        return self.kind.name.lower()

    @property
    def recorded(self) -> bool:
        """Whether it has rings and records; otherwise it is only counted."""
        return HOST_EVENT_OF[self.kind].recorded


def _same(*names: str) -> tuple[Field, ...]:
    """Fields that have the same name in every kernel and in ipitrace."""
    return tuple(Field(name, (name,)) for name in names)


def _function(
    kind: Kind,
    fields: tuple[Field, ...] = (),
    *,
    symbol: str = "",
    on_return: bool = False,
    any_context: bool = False,
) -> EventSpec:
    """A kernel function; its symbol is the kind's name unless given."""
    symbol = symbol or kind.name.lower()
    return EventSpec(kind, "", fields, symbol=symbol, on_return=on_return, any_context=any_context)


_ACCEPT = ("apicid:u32 dm:u16 tm:u16 vec:u8",)
_VECTOR = ("vector:s32",)

EVENTS: Final[tuple[EventSpec, ...]] = (
    EventSpec(
        Kind.KVM_EXIT,
        "kvm",
        (
            # The reason is a raw argument only before 0a62a0319abb, "KVM: x86: Get
            # exit_reason as part of kvm_x86_ops.get_exit_info"; info1 is never one.
            *_same("exit_reason"),
            Field("isa", ("isa",), optional=True),
            Field("info1", ("info1",), optional=True),
        ),
        ("vcpu:*kvm_vcpu isa:u32", "exit_reason:u32 vcpu:*kvm_vcpu isa:u32"),
    ),
    EventSpec(Kind.KVM_ENTRY, "kvm"),
    EventSpec(
        Kind.KVM_APIC_IPI,
        "kvm",
        _same("icr_low", "dest_id"),
        ("icr_low:u32 dest_id:u32",),
    ),
    EventSpec(
        Kind.KVM_APIC_ACCEPT_IRQ,
        "kvm",
        _same("apicid", "dm", "vec"),
        _ACCEPT,
    ),
    EventSpec(
        Kind.KVM_APICV_ACCEPT_IRQ,
        "kvm",
        _same("apicid", "dm", "vec"),
        _ACCEPT,
    ),
    EventSpec(
        Kind.KVM_EOI,
        "kvm",
        _same("vector"),
        ("apic:*kvm_lapic vector:s32",),
    ),
    EventSpec(
        Kind.KVM_PV_EOI,
        "kvm",
        _same("vector"),
        ("apic:*kvm_lapic vector:s32",),
    ),
    EventSpec(
        Kind.KVM_MSR,
        "kvm",
        _same("write", "ecx", "data", "exception"),
        ("write:u32 ecx:u32 data:u64 exception:bool",),
    ),
    EventSpec(
        Kind.KVM_APIC,
        "kvm",
        _same("rw", "reg", "val"),
        # val was u32 before IPI virtualization, and is now u64: x2APIC's ICR has 64 bits.
        ("rw:u32 reg:u32 val:u64", "rw:u32 reg:u32 val:u32"),
    ),
    EventSpec(
        Kind.KVM_HYPERCALL,
        "kvm",
        _same("nr", "a0", "a3"),
        ("nr:u64 a0:u64 a1:u64 a2:u64 a3:u64",),
    ),
    EventSpec(
        Kind.KVM_INJ_VIRQ,
        "kvm",
        # "vector" since soft and reinjected were added; "irq" before.
        (Field("vector", ("vector", "irq")),),
        ("vector:u32 soft:bool reinjected:bool", "irq:u32"),
    ),
    EventSpec(
        Kind.KVM_VCPU_WAKEUP,
        "kvm",
        _same("ns", "waited", "valid"),
        ("ns:u64 waited:bool valid:bool",),
    ),
    EventSpec(Kind.KVM_EMULATE_INSN, "kvm"),
    EventSpec(
        Kind.KVM_AVIC_INCOMPLETE_IPI,
        "kvm",
        _same("icrh", "icrl", "id", "index"),
        ("vcpu:u32 icrh:u32 icrl:u32 id:u32 index:u32",),
    ),
    EventSpec(
        Kind.KVM_AVIC_KICK_VCPU_SLOWPATH,
        "kvm",
        _same("icrh", "icrl", "index"),
        ("icrh:u32 icrl:u32 index:u32",),
    ),
    EventSpec(
        Kind.KVM_AVIC_DOORBELL,
        "kvm",
        _same("vcpuid", "apicid"),
        ("vcpuid:u32 apicid:u32",),
    ),
    EventSpec(
        Kind.KVM_APICV_INHIBIT_CHANGED,
        "kvm",
        _same("reason", "set", "inhibits"),
        ("reason:s32 set:bool inhibits:u64",),
    ),
    EventSpec(
        Kind.KVM_WRITE_TSC_OFFSET,
        "kvm",
        _same("vcpu_id", "next_tsc_offset"),
        ("vcpu_id:u32 previous_tsc_offset:u64 next_tsc_offset:u64",),
    ),
    EventSpec(
        Kind.KVM_PI_IRTE_UPDATE,
        "kvm",
        _same("host_irq", "gsi", "gvec"),
        (
            "host_irq:u32 vcpu:*kvm_vcpu gsi:u32 gvec:u32 set:bool",
            "host_irq:u32 vcpu_id:u32 gsi:u32 gvec:u32 pi_desc_addr:u64 set:bool",
        ),
    ),
    EventSpec(
        Kind.RESCHEDULE_ENTRY,
        "irq_vectors",
        _same("vector"),
        _VECTOR,
    ),
    EventSpec(
        Kind.CALL_FUNCTION_ENTRY,
        "irq_vectors",
        _same("vector"),
        _VECTOR,
    ),
    EventSpec(
        Kind.CALL_FUNCTION_SINGLE_ENTRY,
        "irq_vectors",
        _same("vector"),
        _VECTOR,
    ),
    EventSpec(
        Kind.IPI_SEND_CPU,
        "ipi",
        _same("cpu"),
        ("cpu:u32 callsite:u64 callback:*",),
    ),
    EventSpec(
        Kind.SCHED_SWITCH,
        "sched",
        (Field("next", ("next",), columns=("next_pid",)),),
        (
            "preempt:bool prev:*task_struct next:*task_struct prev_state:u32",
            "preempt:bool prev_state:u32 prev:*task_struct next:*task_struct",
            "preempt:bool prev:*task_struct next:*task_struct",
        ),
    ),
    _function(
        Kind.PI_WAKEUP_HANDLER,
        any_context=True,
    ),
    _function(
        Kind.SYSVEC_KVM_POSTED_INTR_WAKEUP_IPI,
        # Its entry code cannot be probed: 13cad9851c9b, "x86/entry: Convert various system
        # vectors".
        symbol="__sysvec_kvm_posted_intr_wakeup_ipi",
        any_context=True,
    ),
    _function(
        Kind.SMP_KVM_POSTED_INTR_IPI,
        any_context=True,
    ),
    _function(
        Kind.VMX_DELIVER_INTERRUPT,
        (Field("vector", ("vector",), optional=True),),
    ),
    _function(
        Kind.VMX_DELIVER_POSTED_INTERRUPT,
        (Field("vector", ("vector",), optional=True),),
    ),
    _function(
        Kind.HANDLE_FASTPATH_SET_MSR_IRQOFF,
        on_return=True,
    ),
    _function(Kind.HANDLE_FASTPATH_WRMSR, on_return=True),
    _function(
        Kind.HANDLE_FASTPATH_WRMSR_IMM,
        on_return=True,
    ),
    EventSpec(
        Kind.KVM_PLE_WINDOW_UPDATE,
        "kvm",
        _same("new", "old"),
        ("vcpu_id:u32 new:u32 old:u32",),
    ),
    EventSpec(
        Kind.KVM_HV_SEND_IPI,
        "kvm",
        _same("vector", "processor_mask"),
        ("vector:u32 processor_mask:u64",),
    ),
    EventSpec(
        Kind.KVM_HV_SEND_IPI_EX,
        "kvm",
        _same("vector", "format", "valid_bank_mask"),
        ("vector:u32 format:u64 valid_bank_mask:u64",),
    ),
    EventSpec(
        Kind.KVM_AVIC_UNACCELERATED_ACCESS,
        "kvm",
        _same("offset", "ft", "rw"),
        ("vcpu:u32 offset:u32 ft:bool rw:bool vec:u32",),
    ),
    # Its raw arguments have only a pointer to the guest's message.
    EventSpec(
        Kind.KVM_VMGEXIT_ENTER,
        "kvm",
        _same("exit_reason", "info1"),
        ("vcpu_id:u32 ghcb:*ghcb",),
    ),
    EventSpec(
        Kind.KVM_XEN_HYPERCALL,
        "kvm",
        _same("nr", "a0"),
        (
            "cpl:u8 nr:u64 a0:u64 a1:u64 a2:u64 a3:u64 a4:u64 a5:u64",
            "nr:u64 a0:u64 a1:u64 a2:u64 a3:u64 a4:u64 a5:u64",
        ),
    ),
    EventSpec(
        Kind.KVM_PV_TLB_FLUSH,
        "kvm",
        _same("need_flush_tlb"),
        ("vcpu_id:u32 need_flush_tlb:bool",),
    ),
)


def _for_stages(event: EventSpec) -> EventSpec:
    """The event without the values that no stage needs.

    The exit reason is no longer a raw argument of kvm_exit. Without it the raw tracepoint
    suffices, which costs a third of the classic one.
    """
    if event.kind != Kind.KVM_EXIT:
        return event
    reason = Field("exit_reason", ("exit_reason",), optional=True)
    return replace(event, fields=(reason, *(f for f in event.fields if f.name == "isa")))


STAGE_EVENTS: Final = tuple(_for_stages(event) for event in EVENTS if event.kind in STAGE_KINDS)
"""The events of the stages, each with as few values as possible."""

EVENT_BY_NAME: Final = {event.name: event for event in EVENTS}
