# SPDX-License-Identifier: Apache-2.0
"""The host events we watch: one table."""

from dataclasses import dataclass
from typing import Final

from ipitrace.words.events import HOST_EVENT_OF, Kind


@dataclass(frozen=True)
class Field:
    """A value a probe reads: its name in the BPF source, and how kernels spell it.

    `spellings` are tried in order, newest kernel first, as argument names of the
    raw tracepoint or function and as column names of the classic tracepoint;
    `columns` replaces them for the classic one where the two differ.
    """

    name: str
    spellings: tuple[str, ...]
    columns: tuple[str, ...] = ()
    optional: bool = False

    @property
    def column_spellings(self) -> tuple[str, ...]:
        """How a tracefs `format` file may name this value."""
        return self.columns or self.spellings


@dataclass(frozen=True)
class EventSpec:
    """One event: its kind, its place in tracefs, what it means and what we read.

    `prototypes` are the argument lists it is known to have had, newest first,
    each as "name:shape ..." (shapes as in btf.Arg): they name the arguments on
    kernels whose BTF knows only their types.

    An event with a `symbol` is no tracepoint but a kernel function of that name,
    `on_return` when it is its return we watch. `anyones`: it runs in whatever
    context an interrupt finds, on behalf of whichever VM.
    """

    kind: Kind
    category: str
    fields: tuple[Field, ...] = ()
    prototypes: tuple[str, ...] = ()
    symbol: str = ""
    on_return: bool = False
    anyones: bool = False

    @property
    def name(self) -> str:
        """What we call it: a tracepoint's name as kernel and tracefs spell it."""
        return self.kind.name.lower()

    @property
    def recorded(self) -> bool:
        """It has rings, and leaves records in them; otherwise it is only counted."""
        return HOST_EVENT_OF[self.kind].recorded


def _same(*names: str) -> tuple[Field, ...]:
    """Fields that every kernel spells as we do."""
    return tuple(Field(name, (name,)) for name in names)


def _function(
    kind: Kind,
    fields: tuple[Field, ...] = (),
    *,
    symbol: str = "",
    on_return: bool = False,
    anyones: bool = False,
) -> EventSpec:
    """A kernel function; its symbol is the kind's name unless said otherwise."""
    symbol = symbol or kind.name.lower()
    return EventSpec(kind, "", fields, symbol=symbol, on_return=on_return, anyones=anyones)


_ACCEPT = ("apicid:u32 dm:u16 tm:u16 vec:u8",)
_VECTOR = ("vector:s32",)

EVENTS: Final[tuple[EventSpec, ...]] = (
    EventSpec(
        Kind.KVM_EXIT,
        "kvm",
        (
            # The reason is a raw argument only before 0a62a0319abb, "KVM: x86: Get
            # exit_reason as part of kvm_x86_ops.get_exit_info"; info1 never is one.
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
        # val grew from u32 with IPI virtualization: the 64-bit ICR of x2APIC.
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
        # "vector" since soft and reinjected joined it; "irq" before.
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
        anyones=True,
    ),
    _function(
        Kind.SYSVEC_KVM_POSTED_INTR_WAKEUP_IPI,
        # The entry code around it may not be probed: 13cad9851c9b, "x86/entry: Convert
        # various system vectors".
        symbol="__sysvec_kvm_posted_intr_wakeup_ipi",
        anyones=True,
    ),
    _function(
        Kind.SMP_KVM_POSTED_INTR_IPI,
        anyones=True,
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
)

EVENT_BY_NAME: Final = {event.name: event for event in EVENTS}
