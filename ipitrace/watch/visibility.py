# SPDX-License-Identifier: Apache-2.0
"""Does the host see every IPI of this VM? Decided by what was seen; parameters only hint.

An IPI leaves no host evidence when the hardware delivers it: AVIC, Intel's IPI
virtualization, self-IPIs with virtual interrupt delivery, and experiments that hand the
ICR to the guest. All of them need APICv or AVIC active for the vCPU. KVM tells whether it
was, for every interrupt it delivers itself: kvm_apicv_accept_irq follows
kvm_apic_accept_irq only then (vmx_deliver_interrupt() in arch/x86/kvm/vmx/vmx.c,
svm_complete_interrupt_delivery() in arch/x86/kvm/svm/svm.c). One that was taken proves that
it is active; that it never is, only many that were not (evidence.py).
"""

from collections.abc import Mapping

from ipitrace.watch.evidence import ENOUGH, NEEDED, bound_in_words
from ipitrace.watch.model import Visibility

# Those that can let an IPI through without an exit.
_HINTS = ("enable_apicv", "avic", "enable_ipiv")
_INVISIBLE = "self-IPIs, and all others with IPI virtualization or AVIC, leave no trace here"


def hint(backend: str | None, parameters: Mapping[str, str] | None) -> str:
    """What the module's parameters suggest, in a few words; "" when they say nothing."""
    named = [
        f"{name}={value}"
        for name in _HINTS
        if (value := (parameters or {}).get(f"{backend}.{name}")) is not None
    ]
    return f"hint, not evidence: {backend} has {', '.join(named)}" if named else ""


def visibility(
    *, accepted: int, taken: int, others_accepted: int, others_taken: int, watched: bool, hint: str
) -> Visibility:
    """Judge by interrupts with a vector: how many were accepted, how many APICv or AVIC took.

    Args:
        accepted: IPIs.
        taken: those of them that APICv or AVIC took.
        others_accepted: other interrupts, accepted in the VM's threads.
        others_taken: those of them that APICv or AVIC took.
        watched: kvm_apicv_accept_irq could be watched at all.
        hint: what hint() said.
    """
    tail = f" ({hint})" if hint else ""
    if not watched:
        return Visibility(
            complete=None,
            why=f"kvm_apicv_accept_irq cannot be watched: IPIs without exit may be missing{tail}",
        )
    if taken or others_taken:
        seen, of = taken + others_taken, accepted + others_accepted
        return Visibility(
            complete=False,
            why=f"APICv or AVIC is active (it took {seen:,} of {of:,} interrupts seen): "
            f"{_INVISIBLE}; what is counted is a lower bound{tail}",
        )
    seen = accepted + others_accepted
    none = f"APICv or AVIC took none of {seen:,} interrupt{'' if seen == 1 else 's'} seen"
    if seen >= ENOUGH:
        return Visibility(
            complete=True, why=f"IPIs of this VM take exits: {none}, so {bound_in_words(seen)}"
        )
    if seen:
        return Visibility(
            complete=None,
            why=f"too few to tell whether IPIs without exit are missing: {none}; {NEEDED}{tail}",
        )
    return Visibility(
        complete=None,
        why=f"no interrupt seen yet that tells whether IPIs without exit are missing{tail}",
    )
