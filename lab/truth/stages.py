# SPDX-License-Identifier: Apache-2.0
"""The stages of each IPI by the emulator's stamps.

The assignment is not ipitrace's, which it is to check. It is simpler: the emulator's clock has
no error, the order of its stamps is the order of events, and a stamp's CPU identifies its vCPU,
which is pinned there. Each rule is: in this interval, on this CPU, the first or the last stamp
of this tracepoint.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from ipitrace.words.scenarios import SENDER
from ipitrace.words.stages import STAGES, Stage
from lab.common.steps import LabError

_HOST_INTERRUPTS = ("reschedule_entry", "call_function_entry", "call_function_single_entry")
_ICR_WRITES = ("kvm_msr", "kvm_apic")
TRACEPOINTS = (
    *("kvm_exit", "kvm_entry", "kvm_apic_ipi", "kvm_apic_accept_irq", "kvm_apicv_accept_irq"),
    *("ipi_send_cpu", "sched_switch", "kvm_vcpu_wakeup", "kvm_inj_virq", "kvm_eoi"),
    *(*_HOST_INTERRUPTS, *_ICR_WRITES),
)
"""Those of the stages that are host events."""


class Stamp(NamedTuple):
    """The host's TSC at which a CPU passed a place."""

    tsc: int
    cpu: int
    name: str


def read_stamps(file: Path, names: Mapping[int, str]) -> list[Stamp]:
    """The emulator's stamps, in order; patch 10 describes the file.

    Args:
        file: written by the emulator.
        names: of the places, by their numbers.

    Raises:
        LabError: the file is not as expected, or time goes backwards from one CPU to another.
    """
    stamps = []
    for line in file.read_text().splitlines():
        try:
            word, *numbers = line.split()
            tsc, cpu, number = map(int, numbers)
            stamps.append(Stamp(tsc, cpu, names[number]))
        except (KeyError, ValueError):
            word = ""
        if word != "stamp":
            raise LabError(f"not a stamp of a known place in {file}: {line!r}")
    if any(later.tsc < earlier.tsc for earlier, later in pairwise(stamps)):
        raise LabError(f"the TSCs of the emulated CPUs differ: {file}")
    return stamps


def stages_of(
    ipi: Mapping[str, Any], until: int, stamps: Sequence[Stamp], cpus: Sequence[int]
) -> dict[Stage, int]:
    """The time of each stage that one IPI has, as the guest's TSC.

    Args:
        ipi: a row of guest_ipis.parquet.
        until: the next send.
        stamps: on the guest's clock.
        cpus: the host CPU of each vCPU.
    """
    send, sent, handler = ipi["send_tsc"], ipi["sent_tsc"], ipi["handler_tsc"]
    found = {spec.stage: ipi[f"{spec.name}_tsc"] for spec in STAGES if spec.guest}
    window = stamps[bisect_left(stamps, (send,)) : bisect_left(stamps, (until,))]
    sender = [s for s in window if s.cpu == cpus[SENDER]]
    ipis = [i for i, s in enumerate(sender) if s.name == "kvm_apic_ipi" and s.tsc <= sent]
    accept: Stamp | None = None
    if ipis:
        before, after = sender[: ipis[0]], sender[ipis[0] :]
        found[Stage.IPI] = after[0].tsc
        found[Stage.SENDER_EXIT] = _last(before, "kvm_exit")
        found[Stage.SENDER_ENTRY] = _first(after, "kvm_entry")
        in_exit = after[: _index(after, "kvm_entry")]
        found[Stage.ICR_WRITE] = _first(in_exit, *_ICR_WRITES)
        found[Stage.ACCEPT] = _first(in_exit, "kvm_apic_accept_irq")
        found[Stage.APICV_ACCEPT] = _first(in_exit, "kvm_apicv_accept_irq")
        found[Stage.KICK] = _first(in_exit, "ipi_send_cpu")
        accept = next((s for s in in_exit if s.name == "kvm_apic_accept_irq"), None)
    if ipi["target"] != SENDER and handler is not None:
        at = 0 if accept is None else window.index(accept)
        target = [s for s in window[at:] if s.cpu == cpus[ipi["target"]]]
        found[Stage.KVM_EOI] = _first(target, "kvm_eoi")
        way = [s for s in target if s.tsc <= handler]
        found[Stage.TARGET_INTERRUPT] = _first(way, *_HOST_INTERRUPTS)
        found[Stage.SCHED_IN] = _last(way, "sched_switch")
        found[Stage.WAKEUP] = _first(way, "kvm_vcpu_wakeup")
        found[Stage.INJECT] = _first(way, "kvm_inj_virq")
        found[Stage.TARGET_ENTRY] = _last(way, "kvm_entry")
        ends = [i for i, s in enumerate(way) if s.name == "kvm_entry"][-1:]
        to_inject = way[: min(_index(way, "kvm_inj_virq"), *ends, len(way))]
        found[Stage.TARGET_EXIT] = _first(to_inject, "kvm_exit")
    return {stage: tsc for stage, tsc in found.items() if tsc is not None}


def _index(stamps: Sequence[Stamp], *names: str) -> int:
    return next((i for i, s in enumerate(stamps) if s.name in names), len(stamps))


def _first(stamps: Iterable[Stamp], *names: str) -> int | None:
    return next((s.tsc for s in stamps if s.name in names), None)


def _last(stamps: Sequence[Stamp], *names: str) -> int | None:
    return _first(reversed(stamps), *names)
