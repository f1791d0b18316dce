# SPDX-License-Identifier: Apache-2.0
"""How each kind of host passes an IPI on: the events of each step, and their stages."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ipitrace.words.events import Kind
from ipitrace.words.exit_reasons import Isa
from ipitrace.words.paths import IpiPath
from ipitrace.words.stages import Stage

VECTOR = 0xF0
NO_IN_SERVICE = 0xFFFF
ICR, ICR_HIGH = 0x300, 0x310


@dataclass(frozen=True)
class Happening:
    """One host event and the IPI it belongs to."""

    tsc: int
    vcpu: int
    kind: Kind
    ipi: int
    detail: int = 0
    word: int = 0
    arg: int = 0


@dataclass
class Ipi:
    """What is written down of one IPI while it goes its way."""

    number: int
    rng: np.random.Generator
    sender: int
    targets: tuple[int, ...]
    now: int
    last: bool = False
    happenings: list[Happening] = field(default_factory=list)
    stages: dict[int, dict[Stage, int]] = field(default_factory=dict)
    handler: dict[int, int] = field(default_factory=dict)
    eoi: dict[int, int] = field(default_factory=dict)
    wake: dict[int, int] = field(default_factory=dict)

    def event(
        self,
        vcpu: int,
        kind: Kind,
        stage: Stage | None = None,
        *,
        of: Sequence[int] | None = None,
        detail: int = 0,
        word: int = 0,
        arg: int = 0,
    ) -> None:
        """Time goes on, and this happens; it is `stage` of the targets `of`."""
        self.now += int(self.rng.integers(100, 900))
        self.happenings.append(Happening(self.now, vcpu, kind, self.number, detail, word, arg))
        for target in of if of is not None else self.targets:
            if stage is not None:
                self.stages.setdefault(target, {})[stage] = self.now

    def exit(
        self,
        vcpu: int,
        isa: int,
        reason: int,
        stage: Stage | None = None,
        *,
        of: Sequence[int] | None = None,
        arg: int = 0,
    ) -> None:
        self.event(vcpu, Kind.KVM_EXIT, stage, of=of, detail=isa, word=reason, arg=arg)

    def entry(
        self, vcpu: int, stage: Stage | None = None, *, of: Sequence[int] | None = None
    ) -> None:
        self.event(vcpu, Kind.KVM_ENTRY, stage, of=of)

    # what the sender's KVM does

    def take_on(self) -> None:
        self.event(self.sender, Kind.KVM_APIC_IPI, Stage.IPI, word=VECTOR, arg=1)

    def deliver(self, *, kick: bool, posted: bool = False, doorbell: bool = False) -> None:
        for target in self.targets:
            of = [target]
            self.event(
                self.sender,
                Kind.KVM_APIC_ACCEPT_IRQ,
                Stage.ACCEPT,
                of=of,
                detail=VECTOR,
                word=target,
            )
            if kick:
                self.event(self.sender, Kind.IPI_SEND_CPU, Stage.KICK, of=of, word=cpu_of(target))
            if doorbell:
                self.event(
                    self.sender,
                    Kind.KVM_AVIC_DOORBELL,
                    Stage.KICK,
                    of=of,
                    word=77,
                    detail=target,
                )
            self.wake[target] = self.now
            if posted:
                self.event(
                    self.sender,
                    Kind.KVM_APICV_ACCEPT_IRQ,
                    Stage.APICV_ACCEPT,
                    of=of,
                    detail=VECTOR,
                    word=target,
                )

    def wrote_icr(self, *, msr: bool) -> None:
        arg = 1 << 32 | VECTOR
        self.event(self.sender, Kind.KVM_APIC, Stage.ICR_WRITE, detail=1, word=ICR, arg=arg)
        if msr:
            self.event(self.sender, Kind.KVM_MSR, detail=1, word=0x830, arg=arg)

    # what a target does; `now` is its own time meanwhile

    def handle(self, target: int) -> None:
        self.now += int(self.rng.integers(150, 900))
        self.handler[target] = self.now
        self.stages.setdefault(target, {})[Stage.HANDLER] = self.now

    def end(self, target: int) -> None:
        self.now += int(self.rng.integers(50, 400))
        self.eoi[target] = self.now
        self.stages.setdefault(target, {})[Stage.EOI] = self.now


def cpu_of(vcpu: int) -> int:
    """The host CPU a vCPU is on: not its own number."""
    return 10 + vcpu


# ---- senders

Part = Callable[[Ipi], None]


def emulated(ipi: Ipi) -> None:
    ipi.take_on()
    ipi.deliver(kick=True)
    ipi.wrote_icr(msr=True)


def trapped(
    isa: int,
    reason: int,
    *,
    kick: bool = True,
    posted: bool = False,
    msr: bool = True,
    flags: int = 0,
    arg: int = 0,
) -> Part:
    def send(ipi: Ipi) -> None:
        ipi.exit(ipi.sender, isa, reason | flags, Stage.SENDER_EXIT, arg=arg)
        ipi.take_on()
        ipi.deliver(kick=kick, posted=posted)
        ipi.wrote_icr(msr=msr)
        ipi.entry(ipi.sender, Stage.SENDER_ENTRY)

    return send


def fastpath(*, entry: bool) -> Part:
    def send(ipi: Ipi) -> None:
        ipi.exit(ipi.sender, Isa.VMX, 32, Stage.SENDER_EXIT)
        ipi.take_on()
        ipi.deliver(kick=True)
        ipi.wrote_icr(msr=True)
        ipi.event(ipi.sender, Kind.HANDLE_FASTPATH_SET_MSR_IRQOFF, word=1)
        if entry:
            ipi.entry(ipi.sender, Stage.SENDER_ENTRY)
        else:  # the next exit, for something else, has no entry before it
            ipi.exit(ipi.sender, Isa.VMX, 1)
            ipi.entry(ipi.sender)

    return send


def exit_told_late(ipi: Ipi) -> None:
    """SVM until 2023: the fastpath has run when kvm_exit is told."""
    ipi.take_on()
    ipi.deliver(kick=True)
    ipi.wrote_icr(msr=True)
    ipi.exit(ipi.sender, Isa.SVM, 0x7C, Stage.SENDER_EXIT)
    ipi.entry(ipi.sender, Stage.SENDER_ENTRY)


def two_stores(isa: int, reason: int) -> Part:
    def send(ipi: Ipi) -> None:
        ipi.exit(ipi.sender, isa, reason)
        ipi.event(ipi.sender, Kind.KVM_APIC, detail=1, word=ICR_HIGH, arg=VECTOR << 24 | VECTOR)
        ipi.entry(ipi.sender)
        trapped(isa, reason, msr=False)(ipi)

    return send


def hypercall(ipi: Ipi) -> None:
    ipi.exit(ipi.sender, Isa.VMX, 18, Stage.SENDER_EXIT)
    ipi.event(ipi.sender, Kind.KVM_HYPERCALL, word=10, arg=3)
    ipi.deliver(kick=True)
    ipi.entry(ipi.sender, Stage.SENDER_ENTRY)


def hv_hypercall(isa: int, reason: int, kind: Kind) -> Part:
    def send(ipi: Ipi) -> None:
        ipi.exit(ipi.sender, isa, reason, Stage.SENDER_EXIT)
        ipi.event(ipi.sender, kind, Stage.IPI, detail=VECTOR, arg=1)
        ipi.deliver(kick=True)
        ipi.entry(ipi.sender, Stage.SENDER_ENTRY)

    return send


def avic_incomplete(cause: int) -> Part:
    def send(ipi: Ipi) -> None:
        ipi.exit(ipi.sender, Isa.SVM, 0x401, Stage.SENDER_EXIT)
        ipi.event(ipi.sender, Kind.KVM_AVIC_INCOMPLETE_IPI, word=cause, arg=VECTOR)
        ipi.deliver(kick=False, posted=True, doorbell=True)
        ipi.entry(ipi.sender, Stage.SENDER_ENTRY)

    return send


def hv_emulated(ipi: Ipi) -> None:
    """Where kvm_exit never fires."""
    ipi.event(ipi.sender, Kind.KVM_HV_SEND_IPI, Stage.IPI, detail=VECTOR, arg=1)
    ipi.deliver(kick=True)


def avic_untold(ipi: Ipi) -> None:
    """The exit alone, where the tracepoint cannot be watched: its info1 has no cause."""
    ipi.exit(ipi.sender, Isa.SVM, 0x401, Stage.SENDER_EXIT)
    ipi.deliver(kick=False, posted=True, doorbell=True)
    ipi.entry(ipi.sender, Stage.SENDER_ENTRY)


def avic_unaccelerated(ipi: Ipi) -> None:
    ipi.exit(ipi.sender, Isa.SVM, 0x402, Stage.SENDER_EXIT, arg=1 << 32 | ICR)
    ipi.event(ipi.sender, Kind.KVM_AVIC_UNACCELERATED_ACCESS, word=ICR, detail=3)
    ipi.take_on()
    ipi.deliver(kick=False, posted=True, doorbell=True)
    ipi.entry(ipi.sender, Stage.SENDER_ENTRY)


def vmgexit(reason: int, info1: int, *, msr: bool, told: bool = True) -> Part:
    """SEV-ES: KVM runs its usual handler for the reason in the guest's message."""

    def send(ipi: Ipi) -> None:
        ipi.exit(ipi.sender, Isa.SVM, 0x403, Stage.SENDER_EXIT)
        if told:
            ipi.event(ipi.sender, Kind.KVM_VMGEXIT_ENTER, word=reason, arg=info1)
        ipi.take_on()
        ipi.deliver(kick=True)
        ipi.wrote_icr(msr=msr)
        ipi.entry(ipi.sender, Stage.SENDER_ENTRY)

    return send


def nothing(ipi: Ipi) -> None:
    ipi.now += 200
    for target in ipi.targets:
        ipi.wake[target] = ipi.now


# ---- targets

TargetPart = Callable[[Ipi, int], None]


def interrupted(ipi: Ipi, target: int) -> None:
    ipi.event(target, Kind.RESCHEDULE_ENTRY, Stage.TARGET_INTERRUPT, of=[target], detail=0xFD)


def emulated_running(ipi: Ipi, target: int) -> None:
    interrupted(ipi, target)
    ipi.event(target, Kind.KVM_EOI, Stage.KVM_EOI, of=[target], detail=VECTOR)
    ipi.handle(target)
    ipi.event(target, Kind.KVM_EOI, detail=NO_IN_SERVICE)
    ipi.end(target)


def emulated_halted(ipi: Ipi, target: int) -> None:
    ipi.event(target, Kind.SCHED_SWITCH, Stage.SCHED_IN, of=[target], detail=1)
    ipi.event(target, Kind.KVM_VCPU_WAKEUP, Stage.WAKEUP, of=[target], detail=3)
    ipi.event(target, Kind.KVM_EOI, Stage.KVM_EOI, of=[target], detail=VECTOR)
    ipi.handle(target)
    ipi.end(target)
    ipi.event(target, Kind.SCHED_SWITCH, detail=0)


def injected(ipi: Ipi, target: int, isa: int, eoi_exit: int) -> None:
    ipi.event(target, Kind.KVM_INJ_VIRQ, Stage.INJECT, of=[target], detail=VECTOR)
    ipi.entry(target, Stage.TARGET_ENTRY, of=[target])
    ipi.handle(target)
    ipi.exit(target, isa, eoi_exit, of=[])
    ipi.event(target, Kind.KVM_EOI, Stage.KVM_EOI, of=[target], detail=VECTOR)
    ipi.entry(target)
    ipi.end(target)


def kicked(isa: int, interrupt: int, eoi_exit: int, window: int | None = None) -> TargetPart:
    def run(ipi: Ipi, target: int) -> None:
        ipi.exit(target, isa, interrupt, Stage.TARGET_EXIT, of=[target])
        interrupted(ipi, target)
        if window is not None:  # it could not take the interrupt yet
            ipi.entry(target)
            ipi.exit(target, isa, window)
        injected(ipi, target, isa, eoi_exit)

    return run


def woken(isa: int, halt: int, eoi_exit: int) -> TargetPart:
    def run(ipi: Ipi, target: int) -> None:
        ipi.event(target, Kind.SCHED_SWITCH, Stage.SCHED_IN, of=[target], detail=1)
        ipi.event(target, Kind.KVM_VCPU_WAKEUP, Stage.WAKEUP, of=[target], detail=3)
        injected(ipi, target, isa, eoi_exit)
        halts_again(ipi, target, isa, halt)

    return run


def halts_again(ipi: Ipi, target: int, isa: int, halt: int) -> None:
    """But for the last time: nobody asks what comes after the last acknowledgement."""
    if ipi.last:
        return
    ipi.now = ipi.eoi[target]
    ipi.exit(target, isa, halt)
    ipi.event(target, Kind.SCHED_SWITCH, detail=0)


def posted(ipi: Ipi, target: int) -> None:
    ipi.handle(target)
    ipi.end(target)


def posted_woken(ipi: Ipi, target: int) -> None:
    ipi.event(target, Kind.SCHED_SWITCH, Stage.SCHED_IN, of=[target], detail=1)
    ipi.event(target, Kind.KVM_VCPU_WAKEUP, Stage.WAKEUP, of=[target], detail=3)
    ipi.entry(target, Stage.TARGET_ENTRY, of=[target])
    ipi.handle(target)
    ipi.end(target)
    halts_again(ipi, target, Isa.VMX, 12)


def idle_halt_of_avic(ipi: Ipi, target: int) -> None:
    """Idle HLT intercept, Linux 6.18 on Zen 5: the target's exits are for 0xa6."""
    ipi.event(target, Kind.SCHED_SWITCH, Stage.SCHED_IN, of=[target], detail=1)
    ipi.event(target, Kind.KVM_VCPU_WAKEUP, Stage.WAKEUP, of=[target], detail=3)
    ipi.entry(target, Stage.TARGET_ENTRY, of=[target])
    ipi.handle(target)
    ipi.end(target)
    halts_again(ipi, target, Isa.SVM, 0xA6)


def lazy_eoi(ipi: Ipi, target: int) -> None:
    """With PV EOI, KVM learns of the last one at the next exit: no stage of either."""
    ipi.exit(target, Isa.VMX, 1, Stage.TARGET_EXIT, of=[target])
    if ipi.number:
        ipi.event(target, Kind.KVM_PV_EOI, detail=VECTOR)
    ipi.event(target, Kind.KVM_INJ_VIRQ, Stage.INJECT, of=[target], detail=VECTOR)
    ipi.entry(target, Stage.TARGET_ENTRY, of=[target])
    ipi.handle(target)
    ipi.end(target)


# ---- to itself


def self_emulated(ipi: Ipi) -> None:
    ipi.take_on()
    ipi.deliver(kick=False)
    ipi.wrote_icr(msr=True)
    ipi.event(ipi.sender, Kind.KVM_EOI, Stage.KVM_EOI, detail=VECTOR)
    ipi.handle(ipi.sender)
    ipi.end(ipi.sender)


def self_trapped(ipi: Ipi) -> None:
    ipi.exit(ipi.sender, Isa.VMX, 32, Stage.SENDER_EXIT)
    ipi.take_on()
    ipi.deliver(kick=False)
    ipi.wrote_icr(msr=True)
    ipi.event(ipi.sender, Kind.KVM_INJ_VIRQ, Stage.INJECT, detail=VECTOR)
    ipi.entry(ipi.sender, Stage.SENDER_ENTRY)
    ipi.handle(ipi.sender)
    ipi.exit(ipi.sender, Isa.VMX, 32)  # its EOI, also a write to an MSR
    ipi.event(ipi.sender, Kind.KVM_EOI, Stage.KVM_EOI, detail=VECTOR)
    ipi.entry(ipi.sender)
    ipi.end(ipi.sender)


@dataclass(frozen=True)
class Model:
    """How a kind of host passes an IPI on; without `target` the sender is the target."""

    send: Part
    target: TargetPart | None
    path: IpiPath


VMX_RUNNING, VMX_HALTED = kicked(Isa.VMX, 1, 32), woken(Isa.VMX, 12, 32)
SVM_RUNNING, SVM_HALTED = kicked(Isa.SVM, 0x60, 0x7C), woken(Isa.SVM, 0x78, 0x7C)

MODELS = {
    "emulated": Model(emulated, emulated_running, IpiPath.EMULATED),
    "emulated-halted": Model(emulated, emulated_halted, IpiPath.EMULATED),
    "emulated-self": Model(self_emulated, None, IpiPath.EMULATED),
    "vmx": Model(trapped(Isa.VMX, 32), VMX_RUNNING, IpiPath.MSR_EXIT),
    "vmx-halted": Model(trapped(Isa.VMX, 32), VMX_HALTED, IpiPath.MSR_EXIT),
    "vmx-self": Model(self_trapped, None, IpiPath.MSR_EXIT),
    "vmx-immediate": Model(trapped(Isa.VMX, 85, flags=1 << 27), VMX_RUNNING, IpiPath.MSR_EXIT),
    "vmx-window": Model(trapped(Isa.VMX, 32), kicked(Isa.VMX, 1, 32, window=7), IpiPath.MSR_EXIT),
    "vmx-fastpath": Model(fastpath(entry=True), VMX_RUNNING, IpiPath.MSR_FASTPATH),
    "vmx-unpaired": Model(fastpath(entry=False), VMX_HALTED, IpiPath.MSR_FASTPATH),
    "vmx-lazy-eoi": Model(trapped(Isa.VMX, 32), lazy_eoi, IpiPath.MSR_EXIT),
    "svm": Model(trapped(Isa.SVM, 0x7C), SVM_RUNNING, IpiPath.MSR_EXIT),
    "svm-halted": Model(trapped(Isa.SVM, 0x7C), SVM_HALTED, IpiPath.MSR_EXIT),
    "svm-vintr": Model(
        trapped(Isa.SVM, 0x7C), kicked(Isa.SVM, 0x60, 0x7C, window=0x64), IpiPath.MSR_EXIT
    ),
    "svm-late": Model(exit_told_late, SVM_RUNNING, IpiPath.MSR_EXIT),
    "xapic-misconfig": Model(two_stores(Isa.VMX, 49), VMX_RUNNING, IpiPath.MMIO),
    "xapic-access": Model(two_stores(Isa.VMX, 44), VMX_HALTED, IpiPath.MMIO),
    "xapic-npf": Model(two_stores(Isa.SVM, 0x400), SVM_RUNNING, IpiPath.MMIO),
    "posted": Model(trapped(Isa.VMX, 32, kick=False, posted=True), posted, IpiPath.MSR_EXIT),
    "posted-halted": Model(trapped(Isa.VMX, 32, posted=True), posted_woken, IpiPath.MSR_EXIT),
    "apic-write": Model(
        trapped(Isa.VMX, 56, kick=False, posted=True, msr=False, arg=ICR),
        posted,
        IpiPath.APIC_WRITE,
    ),
    "pv-hypercall": Model(hypercall, VMX_RUNNING, IpiPath.PV_HYPERCALL),
    "hv-hypercall": Model(
        hv_hypercall(Isa.VMX, 18, Kind.KVM_HV_SEND_IPI), VMX_RUNNING, IpiPath.HV_HYPERCALL
    ),
    "hv-hypercall-ex": Model(
        hv_hypercall(Isa.SVM, 0x81, Kind.KVM_HV_SEND_IPI_EX), SVM_HALTED, IpiPath.HV_HYPERCALL
    ),
    "hv-emulated": Model(hv_emulated, emulated_running, IpiPath.HV_HYPERCALL),
    "svm-idle-halted": Model(trapped(Isa.SVM, 0x7C), woken(Isa.SVM, 0xA6, 0x7C), IpiPath.MSR_EXIT),
    "avic": Model(avic_incomplete(1), posted, IpiPath.AVIC_NOT_RUNNING),
    "avic-idle-halted": Model(avic_incomplete(1), idle_halt_of_avic, IpiPath.AVIC_NOT_RUNNING),
    "avic-type": Model(avic_incomplete(0), posted, IpiPath.AVIC_INVALID_TYPE),
    "avic-target": Model(avic_incomplete(2), posted, IpiPath.AVIC_INVALID_TARGET),
    "avic-page": Model(avic_incomplete(3), posted, IpiPath.AVIC_INVALID_PAGE),
    "avic-vector": Model(avic_incomplete(4), posted, IpiPath.AVIC_INVALID_VECTOR),
    "avic-newer": Model(avic_incomplete(5), posted, IpiPath.AVIC_INCOMPLETE),
    "avic-untold": Model(avic_untold, posted, IpiPath.AVIC_INCOMPLETE),
    "avic-unaccelerated": Model(avic_unaccelerated, posted, IpiPath.AVIC_UNACCELERATED),
    "vmgexit": Model(vmgexit(0x7C, 1, msr=True), SVM_RUNNING, IpiPath.VMGEXIT),
    "vmgexit-mmio": Model(vmgexit(0x80000002, ICR, msr=False), SVM_RUNNING, IpiPath.VMGEXIT),
    "vmgexit-untold": Model(vmgexit(0, 0, msr=True, told=False), SVM_RUNNING, IpiPath.VMGEXIT),
    "exitless-idle-halted": Model(nothing, idle_halt_of_avic, IpiPath.EXITLESS),
    "exitless": Model(nothing, posted, IpiPath.EXITLESS),
    "exitless-halted": Model(nothing, posted_woken, IpiPath.EXITLESS),
}
