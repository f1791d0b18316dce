# SPDX-License-Identifier: Apache-2.0
"""What speaks against the numbers of a run, and what was not measured."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ipitrace.base.units import processes
from ipitrace.recording.disturbances import describe_disturbances
from ipitrace.recording.result import RunResult
from ipitrace.recording.row import ScenarioResult
from ipitrace.words.interrupts import POSTED_ROWS, arrived_elsewhere
from ipitrace.words.scenarios import OVERCOMMITTED, ScenarioStatus, SendMethod

NOTE: Final = "note   "
DOUBT: Final = "DOUBT  "


@dataclass(frozen=True)
class Note:
    """One remark: NOTE or DOUBT, and what it says."""

    label: str
    text: str


def not_measured(run: RunResult) -> Iterator[str]:
    """The scenarios that were not measured, each with the reason."""
    for row in run.scenarios:
        if row.status != ScenarioStatus.MEASURED:
            yield f"{row.name}: {row.reason}"
    if run.failure is not None:
        yield f"the other scenarios: {run.failure}"


def notes_of(run: RunResult, rows: Sequence[ScenarioResult]) -> list[Note]:
    """What a reader must know of the numbers of the measured `rows`: what disturbed them first.

    Doubts come last.
    """
    unmeant = [row.name for row in rows if row.target_state not in OVERCOMMITTED]
    notes = []
    if run.host.pinning.overcommitted and unmeant:
        notes.append(
            f"more vCPUs than CPUs: the numbers of {', '.join(unmeant)} measure the scheduler, not "
            f"IPIs ({run.host.pinning.why})"
        )
    notes += _neighbours(run)
    notes += describe_disturbances(run.disturbances or (), worthless=False)
    notes += _foreign(run, rows)
    notes += [
        f"{row.name}: {row.suspect_spans} IPIs excluded from the stages: the guest's TSC "
        "offset changed near them"
        for row in rows
        if row.suspect_spans
    ]
    notes += [f"{row.name}: {row.coalesced} deliveries coalesced" for row in rows if row.coalesced]
    notes += [f"{row.name}: {note}" for row in rows for note in row.notes]
    notes += _hidden(run)
    doubts = [f"do not rely on these numbers: {doubt}" for doubt in run.untrustworthy]
    return [*(Note(NOTE, text) for text in notes), *(Note(DOUBT, text) for text in doubts)]


def _neighbours(run: RunResult) -> Iterator[str]:
    """Other VMs."""
    around = run.host.neighbours
    if around is None:
        return
    others = around.kvm_processes or ()
    if others:
        names = ", ".join(f"{other.name} (pid {other.pid})" for other in others)
        yield f"other VMs were running and disturb the numbers: {names}"


def _hidden(run: RunResult) -> Iterator[str]:
    """Processes of which it is not known whether they run VMs."""
    hidden = run.host.neighbours.unreadable_processes if run.host.neighbours is not None else 0
    if hidden:
        yield (
            f"{processes(hidden)} could not be inspected (docs/privileges.md): there may "
            "have been more VMs"
        )


def _foreign(run: RunResult, rows: Sequence[ScenarioResult]) -> Iterator[str]:
    """Interrupts that reached CPUs on which the VM never ran."""
    for row in rows:
        vm_cpus = run.guest.pinned_cpus if row.overcommit is None else row.overcommit.cpus
        if vm_cpus is None:
            continue
        counted = row.host_interrupts or {}
        found = arrived_elsewhere(counted, vm_cpus)
        if found:
            yield (
                f"{row.name}: posted-interrupt notifications on CPUs that never ran this "
                f"VM: {_on_cpus(found)}"
            )
        if row.send_method != SendMethod.PASSTHROUGH:
            continue
        others = arrived_elsewhere(counted, vm_cpus, [r for r in counted if r not in POSTED_ROWS])
        if others:
            yield (
                f"{row.name}: the guest can send any interrupt to any CPU. Interrupts on "
                f"CPUs that never ran the guest, the host's own included: {_on_cpus(others)}"
            )


def _on_cpus(found: Mapping[str, Mapping[int, int]]) -> str:
    return "; ".join(
        f"{name} {', '.join(f'{n} on CPU {cpu}' for cpu, n in on_cpus.items())}"
        for name, on_cpus in found.items()
    )
