# SPDX-License-Identifier: Apache-2.0
"""The path of each IPI, derived from host events and never from a module parameter."""

from collections.abc import Collection, Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ipitrace.words.exit_reasons import Isa
from ipitrace.words.paths import IpiPath

# Exit reasons that the send of an IPI can cause, by isa (SDM vol. 3C, appendix C; APM vol. 2,
# appendix C; the flag bits above 15 of Isa.VMX reasons are masked off first).
_BY_REASON: dict[tuple[int, int], IpiPath] = {
    (Isa.VMX, 18): IpiPath.PV_HYPERCALL,  # VMCALL
    (Isa.VMX, 32): IpiPath.MSR_EXIT,
    (Isa.VMX, 85): IpiPath.MSR_EXIT,  # WRMSRNS with an immediate
    (Isa.VMX, 44): IpiPath.MMIO,  # APIC access
    (Isa.VMX, 48): IpiPath.MMIO,  # EPT violation
    (Isa.VMX, 49): IpiPath.MMIO,  # EPT misconfiguration
    (Isa.VMX, 56): IpiPath.APIC_WRITE,
    (Isa.SVM, 0x7C): IpiPath.MSR_EXIT,
    (Isa.SVM, 0x81): IpiPath.PV_HYPERCALL,  # VMMCALL
    (Isa.SVM, 0x400): IpiPath.MMIO,  # nested page fault
    (Isa.SVM, 0x401): IpiPath.AVIC_INCOMPLETE,
    (Isa.SVM, 0x402): IpiPath.AVIC_UNACCELERATED,
    (Isa.SVM, 0x403): IpiPath.VMGEXIT,
}
_VMX_BASIC_REASON = 0xFFFF
_ISA_SHIFT = 32
_HALT = {
    (Isa.VMX, 12),  # also of a TDX guest: KVM shows the reason that the guest gave
    (Isa.SVM, 0x78),
    (Isa.SVM, 0xA6),  # idle HLT: the same, unless an interrupt is pending
    (Isa.SVM, 0x403),  # VMGEXIT: a guest with SEV-ES halts by it
}
_ICR, _SELF_IPI = 0x300, 0x3F0  # offsets in the APIC's page
_SENDS_BY_WRITE = (_ICR, _SELF_IPI)
_OFFSET = 0xFF0
_WRITES = {IpiPath.APIC_WRITE, IpiPath.AVIC_UNACCELERATED}
_ONLY_SENDS = (*_WRITES, IpiPath.AVIC_INCOMPLETE)

# info1 of kvm_exit if the exit is for a write of the ICR, by isa: the offset in the APIC's page
# (SDM vol. 3C, "APIC-Write VM Exits"), with bit 32 set for a write on SVM (APM vol. 2,
# "AVIC_NOACCEL"; avic_unaccelerated_access_interception() in arch/x86/kvm/svm/avic.c).
_SVM_WRITE = 1 << 32
INFO_OF_ICR_WRITE: Final = {Isa.VMX: _ICR, Isa.SVM: _SVM_WRITE | _ICR}

_GHCB_MSR, _GHCB_MMIO_WRITE = 0x7C, 0x80000002

# The paths by the cause of kvm_avic_incomplete_ipi: enum avic_ipi_failure_cause in
# arch/x86/include/asm/svm.h; the last one is since Linux 6.7.
_AVIC_CAUSES: Final = (
    IpiPath.AVIC_INVALID_TYPE,
    IpiPath.AVIC_NOT_RUNNING,
    IpiPath.AVIC_INVALID_TARGET,
    IpiPath.AVIC_INVALID_PAGE,
    IpiPath.AVIC_INVALID_VECTOR,
)


def path_of_exits(
    isa: NDArray[np.integer[Any]], reason: NDArray[np.integer[Any]], info1: NDArray[np.integer[Any]]
) -> NDArray[np.int8]:
    """The IpiPath that each kvm_exit proves if a send caused it; UNKNOWN for all other reasons.

    Args:
        isa: Isa.VMX or Isa.SVM.
        reason: the raw exit reason.
        info1: of kvm_exit. Exits for accesses to the APIC's page have the register's offset
            there (INFO_OF_ICR_WRITE); other registers than the ICR prove nothing.
    """
    path = np.full(len(reason), IpiPath.UNKNOWN, np.int8)
    for (of_isa, of_reason), hit in _hits(isa, reason, _BY_REASON):
        path[hit] = _BY_REASON[of_isa, of_reason]
    info = info1.astype(np.uint64)
    sends = np.isin(info & np.uint64(_OFFSET), _SENDS_BY_WRITE)
    reads = (isa == Isa.SVM) & (info & np.uint64(_SVM_WRITE) == 0)
    path[np.isin(path, tuple(_WRITES)) & (~sends | reads)] = IpiPath.UNKNOWN
    return path


def path_of_avic_cause(cause: NDArray[np.integer[Any]]) -> NDArray[np.int8]:
    """The IpiPath of each `id` of kvm_avic_incomplete_ipi; AVIC_INCOMPLETE if it is not known."""
    paths = np.array([*_AVIC_CAUSES, IpiPath.AVIC_INCOMPLETE], np.int8)
    return paths[np.minimum(cause.astype(np.int64), len(_AVIC_CAUSES))]


def is_sending_access(
    offset: NDArray[np.integer[Any]], detail: NDArray[np.integer[Any]]
) -> NDArray[np.bool_]:
    """Which kvm_avic_unaccelerated_access send an IPI: writes of the ICR and of SELF_IPI."""
    return np.asarray(np.isin(offset, _SENDS_BY_WRITE) & ((detail & 1) == 1))


def may_send(
    reason: NDArray[np.integer[Any]], info1: NDArray[np.integer[Any]]
) -> NDArray[np.bool_]:
    """Which kvm_vmgexit_enter may send an IPI: the guest asks for the write of an MSR or of MMIO.

    The reason is the guest's own (SEV-ES GHCB specification, "NAE Event Identification"); for an
    MSR, info1 is 1 for a write.
    """
    msr_write = (reason == _GHCB_MSR) & (info1 == 1)
    return np.asarray(msr_write | (reason == _GHCB_MMIO_WRITE))


def is_halt(isa: NDArray[np.integer[Any]], reason: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
    """Which kvm_exit are for HLT, or may be: a VMGEXIT has other causes, but no interrupt."""
    halt = np.zeros(len(reason), np.bool_)
    for _, hit in _hits(isa, reason, _HALT):
        halt |= hit
    return halt


def _hits(
    isa: NDArray[np.integer[Any]],
    reason: NDArray[np.integer[Any]],
    wanted: Collection[tuple[int, int]],
) -> Iterator[tuple[tuple[int, int], NDArray[np.bool_]]]:
    """Yield for each wanted (isa, reason) a mask of its occurrences."""
    basic = np.where(isa == Isa.VMX, reason & np.uint32(_VMX_BASIC_REASON), reason)
    both = isa.astype(np.uint64) << np.uint64(_ISA_SHIFT) | basic
    for of_isa, of_reason in wanted:
        hit = both == of_isa << _ISA_SHIFT | of_reason
        yield (of_isa, of_reason), hit


def proves_alone(path: NDArray[np.int8]) -> NDArray[np.bool_]:
    """Whether an exit that proves this path has no other possible cause than a send.

    MSR writes, memory accesses and hypercalls have other causes, too. They count only if there
    is also a KVM event of the send.
    """
    return np.isin(path, _ONLY_SENDS)


def classify(
    *,
    exit_path: NDArray[np.int8],
    any_exit: NDArray[np.bool_],
    hypercall: NDArray[np.bool_],
    hv_hypercall: NDArray[np.bool_],
    avic_incomplete: NDArray[np.int8],
    unaccelerated: NDArray[np.bool_],
    vmgexit: NDArray[np.bool_],
    fastpath: NDArray[np.bool_],
    kvm_took_it: NDArray[np.bool_],
    exits_fire: bool,
    complete: bool,
) -> NDArray[np.int8]:
    """The path of each send, from the evidence inside its send window; arrays of shape (n,).

    Args:
        exit_path: the path proved by the exit in which KVM handled the IPI (path_of_exits);
            UNKNOWN if there is none.
        any_exit: an exit was seen that a send could have caused.
        hypercall: kvm_hypercall SEND_IPI seen.
        hv_hypercall: kvm_hv_send_ipi or kvm_hv_send_ipi_ex seen.
        avic_incomplete: path_of_avic_cause() of kvm_avic_incomplete_ipi; UNKNOWN if none was seen.
        unaccelerated: kvm_avic_unaccelerated_access seen, see is_sending_access().
        vmgexit: kvm_vmgexit_enter seen, see may_send().
        fastpath: KVM's MSR fastpath was seen to run.
        kvm_took_it: any KVM event of the send was seen.
        exits_fire: kvm_exit fired at least once in this VM; its absence is then evidence.
        complete: no event was lost; the absence of an event is then evidence.
    """
    path = exit_path.copy()
    if complete:
        if exits_fire:
            path[~kvm_took_it & ~any_exit] = IpiPath.EXITLESS
        else:
            path[kvm_took_it] = IpiPath.EMULATED
    path[fastpath & (path == IpiPath.MSR_EXIT)] = IpiPath.MSR_FASTPATH
    path[vmgexit & kvm_took_it] = IpiPath.VMGEXIT
    path[unaccelerated] = IpiPath.AVIC_UNACCELERATED
    path = np.where(avic_incomplete == IpiPath.UNKNOWN, path, avic_incomplete)
    # The exit does not show whose hypercall it was: KVM's or Hyper-V's.
    path[path == IpiPath.PV_HYPERCALL] = IpiPath.UNKNOWN
    path[hypercall] = IpiPath.PV_HYPERCALL
    path[hv_hypercall] = IpiPath.HV_HYPERCALL
    return path
