# SPDX-License-Identifier: Apache-2.0
"""Whether the host sees every IPI of a VM: mechanisms.py has the ways in which it does not.

KVM shows whether APICv or AVIC is active for every interrupt that KVM itself delivers: only then
does kvm_apicv_accept_irq follow kvm_apic_accept_irq (vmx_deliver_interrupt() in
arch/x86/kvm/vmx/vmx.c, svm_complete_interrupt_delivery() in arch/x86/kvm/svm/svm.c). One interrupt
that APICv or AVIC accepted proves that it is active. Only many that it did not accept show that it
is never active (evidence.py).
"""

from collections.abc import Mapping, Sequence

from ipitrace.watch.evidence import ENOUGH, NEEDED, bound_in_words
from ipitrace.watch.mechanisms import MECHANISMS, Facts, Mechanism
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


def visibility(facts: Facts, hint: str, mechanisms: Sequence[Mechanism] = MECHANISMS) -> Visibility:
    """Decide by the facts about one VM; `hint` is the result of hint().

    Complete is True if the facts exclude every mechanism, False if they show one in use, and None
    if neither.
    """
    tail = f" ({hint})" if hint else ""
    found = [(mechanism, mechanism.excluded(facts)) for mechanism in mechanisms]
    in_use = [mechanism.name for mechanism, excluded in found if excluded is False]
    if in_use:
        return Visibility(
            complete=False, why=f"{_in_use(facts, in_use)}; the counts are lower bounds{tail}"
        )
    open_ones = [mechanism.name for mechanism, excluded in found if excluded is None]
    seen = facts.accepted
    none = f"APICv or AVIC accepted none of {seen:,} interrupt{'' if seen == 1 else 's'} seen"
    if not open_ones:
        return Visibility(
            complete=True,
            why=f"IPIs of this VM take exits: {none}, therefore {bound_in_words(seen)}",
        )
    if "kvm_apicv_accept_irq" not in facts.hooks:
        why = "kvm_apicv_accept_irq cannot be watched: IPIs without exit may be missing"
    elif not seen:
        why = "no interrupt seen yet that shows whether IPIs without exit are missing"
    elif seen < ENOUGH:
        why = f"too few to decide whether IPIs without exit are missing: {none}; {NEEDED}"
    else:
        why = f"IPIs may be missing: {none}"
    return Visibility(complete=None, why=f"{why}; not excluded: {', '.join(open_ones)}{tail}")


def _in_use(facts: Facts, names: Sequence[str]) -> str:
    if facts.taken:
        return (
            f"APICv or AVIC is active (it accepted {facts.taken:,} of {facts.accepted:,} "
            f"interrupts seen): {_INVISIBLE}"
        )
    return f"IPIs may be missing: the VM uses {', '.join(names)}"
