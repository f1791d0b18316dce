# SPDX-License-Identifier: Apache-2.0
"""Whether the host sees every IPI of a VM. Host events decide; parameters are only a hint.

An IPI leaves no evidence on the host if the hardware delivers it: AVIC, Intel's IPI
virtualization, self-IPIs with virtual interrupt delivery, and experiments that give the guest
the ICR. All of them need APICv or AVIC active for the vCPU. KVM shows whether it is active for
every interrupt that KVM itself delivers: only then does kvm_apicv_accept_irq follow
kvm_apic_accept_irq (vmx_deliver_interrupt() in arch/x86/kvm/vmx/vmx.c,
svm_complete_interrupt_delivery() in arch/x86/kvm/svm/svm.c). One interrupt that APICv or AVIC
accepted proves that it is active. Only many that it did not accept show that it is never active
(evidence.py).
"""

from collections.abc import Mapping

from ipitrace.host.kvm_extensions import HYPERV_IPIS, offers
from ipitrace.tracer.counting import HV_SENDS
from ipitrace.watch.evidence import ENOUGH, NEEDED, bound_in_words
from ipitrace.watch.model import Visibility

# Parameters of features that deliver IPIs without an exit.
_HINTS = ("enable_apicv", "avic", "enable_ipiv")
_INVISIBLE = "self-IPIs, and all others with IPI virtualization or AVIC, leave no trace here"


def hint(backend: str | None, parameters: Mapping[str, str] | None) -> str:
    """The module's parameters that concern IPIs, as text; "" if there are none."""
    named = [
        f"{name}={value}"
        for name in _HINTS
        if (value := (parameters or {}).get(f"{backend}.{name}")) is not None
    ]
    return f"hint, not evidence: {backend} has {', '.join(named)}" if named else ""


def hyperv_gap(left_out: Mapping[str, str]) -> str:
    """Why IPIs that guests send by Hyper-V's hypercalls are not all counted; "" if they are.

    Whether a VM has Hyper-V's interface is not known, only whether this KVM offers it.

    Args:
        left_out: the events that cannot be watched, with the reason.
    """
    missing = [name for name in HV_SENDS if name in left_out]
    if not missing:
        return ""
    try:
        offered = offers(*HYPERV_IPIS)
    except OSError:
        offered = True  # as far as is known
    if not offered:
        return ""
    reasons = ", ".join(dict.fromkeys(left_out[name] for name in missing))
    return (
        f"{' and '.join(missing)} cannot be watched ({reasons}): IPIs that a guest sends by "
        "Hyper-V's hypercalls may be missing"
    )


def visibility(
    *,
    accepted: int,
    taken: int,
    others_accepted: int,
    others_taken: int,
    watched: bool,
    hint: str,
    hyperv_gap: str = "",
) -> Visibility:
    """Decide by interrupts with a vector: how many were accepted, and how many by APICv or AVIC.

    Args:
        accepted: IPIs.
        taken: the IPIs among them that APICv or AVIC accepted.
        others_accepted: other interrupts, accepted in the VM's threads.
        others_taken: the interrupts among them that APICv or AVIC accepted.
        watched: kvm_apicv_accept_irq could be watched at all.
        hint: the result of hint().
        hyperv_gap: the result of hyperv_gap().
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
            why=f"APICv or AVIC is active (it accepted {seen:,} of {of:,} interrupts seen): "
            f"{_INVISIBLE}; the counts are lower bounds{tail}",
        )
    seen = accepted + others_accepted
    none = f"APICv or AVIC accepted none of {seen:,} interrupt{'' if seen == 1 else 's'} seen"
    if hyperv_gap:
        return Visibility(complete=None, why=f"{hyperv_gap}; {none}{tail}")
    if seen >= ENOUGH:
        return Visibility(
            complete=True,
            why=f"IPIs of this VM take exits: {none}, therefore {bound_in_words(seen)}",
        )
    if seen:
        return Visibility(
            complete=None,
            why=f"too few to decide whether IPIs without exit are missing: {none}; {NEEDED}{tail}",
        )
    return Visibility(
        complete=None,
        why=f"no interrupt seen yet that shows whether IPIs without exit are missing{tail}",
    )
