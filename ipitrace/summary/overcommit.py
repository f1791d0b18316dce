# SPDX-License-Identifier: Apache-2.0
"""What sharing CPUs did to the IPIs of a scenario."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import numpy as np

from ipitrace.correlate.stamps import ABSENT
from ipitrace.correlate.waiting import SEVERAL, Waits
from ipitrace.recording.row import (
    ExitsPerIpi,
    Occupant,
    Overcommit,
    PerSide,
    SideWaiting,
    Summary,
)
from ipitrace.summary.exits import KVM_EXIT_SOURCE
from ipitrace.summary.sides import Sides
from ipitrace.summary.stats import summarise
from ipitrace.summary.storms import Measured, Repetition, Waited
from ipitrace.words.events import HOST_EVENT_OF, Kind
from ipitrace.words.exit_reasons import PAUSE_EXITS
from ipitrace.words.scenarios import OVERCOMMITTED
from ipitrace.words.stages import Stage
from ipitrace.words.threads import NamedThread, ThreadKind

_MOST_OCCUPANTS: Final = 16  # limits run.json
_SEVERAL: Final = NamedThread(ThreadKind.SEVERAL, "several threads")
_ENDED: Final = NamedThread(ThreadKind.ENDED, "threads that had ended")
_OTHERS: Final = "other threads"
_NS_PER_S: Final = 1e9
_UNTRACED: Final = "nothing was traced"
_YIELDS: Final = {
    "yields_attempted": "directed_yield_attempted",
    "yields_successful": "directed_yield_successful",
}
"""Field to the name in KVM's statistics of a vCPU (struct kvm_vcpu_stat, since Linux 5.14)."""


def overcommit_of(
    measured: Measured, exits: ExitsPerIpi, proven: Sides, untraced: Sides
) -> tuple[Overcommit | None, dict[str, str]]:
    """What sharing CPUs did, and why parts of it are null; None if the scenario is not for that.

    Args:
        measured: the scenario's repetitions.
        exits: of the repetitions in which all events were recorded.
        proven: the numbers of IPIs of these repetitions.
        untraced: those of the repetitions that the row's timings are from.
    """
    if measured.scenario.target_state not in OVERCOMMITTED or measured.cpus is None:
        return None, {}
    absent: dict[str, str] = {}
    found = [
        (r, r.watched.waited)
        for r in measured.proving
        if r.watched and r.watched.waited is not None
    ]
    sides, running, waiting = _split(found)
    if sides is None:
        why = (
            "the switches of the vCPUs' threads were not recorded completely, or not on the "
            "guest's clock"
        )
        absent |= dict.fromkeys(
            ("sides", "deliver_running", "deliver_waiting"),
            why if any(r.seen is not None for r in measured.proving) else _UNTRACED,
        )
    else:
        if running is None:
            absent["deliver_running"] = "no IPI found its target running throughout"
        if waiting is None:
            absent["deliver_waiting"] = "no target waited"
    switched_out_s = sum(w.switched_out_ns for _, w in found) / _NS_PER_S if found else None
    delays = [w.run_delay_ns for _, w in found if w.run_delay_ns is not None]
    run_delay_s = sum(delays) / _NS_PER_S if delays and len(delays) == len(found) else None
    if switched_out_s is None:
        absent["switched_out_s"] = _UNTRACED
    if run_delay_s is None:
        absent["run_delay_s"] = "the kernel has no schedstat" if found else _UNTRACED
    yields = {
        field: _counter(measured.headline, untraced, name, field, absent)
        for field, name in _YIELDS.items()
    }
    result = Overcommit(
        cpus=measured.cpus,
        vcpus_per_cpu=len(measured.cpus) // len(set(measured.cpus)),
        sides=sides,
        deliver_running=running,
        deliver_waiting=waiting,
        switched_out_s=switched_out_s,
        run_delay_s=run_delay_s,
        ple_exits=_ple_exits(exits, absent),
        ple_window_updates=_ple_updates(measured, proven, absent),
        yields_attempted=yields["yields_attempted"],
        yields_successful=yields["yields_successful"],
    )
    return result, {f"overcommit.{field}": why for field, why in absent.items()}


def _split(
    found: Sequence[tuple[Repetition, Waited]],
) -> tuple[tuple[SideWaiting, ...] | None, Summary | None, Summary | None]:
    """The waiting of both sides, and D without and with waiting of the target."""
    known = [(r, w.waiting, w.names) for r, w in found if w.waiting is not None]
    if not known:
        return None, None, None
    names = [names for _, _, names in known]
    senders = [waiting.sender for _, waiting, _ in known]
    targets = [waiting.target for _, waiting, _ in known]
    spans = [r.watched.spans for r, _, _ in known if r.watched is not None]
    deliver = np.concatenate([s.stage(Stage.HANDLER) - s.stage(Stage.SEND) for s in spans])
    waited = np.concatenate([w.cycles for w in targets])
    return (
        (_side("sender", senders, names), _side("target", targets, names)),
        summarise(deliver[waited == 0]),
        summarise(deliver[waited > 0]),
    )


def _side(
    side: str, waits: Sequence[Waits], names: Sequence[Mapping[int, NamedThread]]
) -> SideWaiting:
    cycles = np.concatenate([w.cycles for w in waits])
    known = cycles != ABSENT
    off = np.concatenate([w.at_send for w in waits])[known]
    total = max(int(np.count_nonzero(known)), 1)
    return SideWaiting(
        side=side,
        ipis=int(np.count_nonzero(known)),
        off_at_send=int(np.count_nonzero(off)) / total if side == "target" else None,
        waited=int(np.count_nonzero(cycles[known] > 0)) / total,
        waited_cycles=summarise(cycles[known & (cycles > 0)]),
        occupants=_occupants(waits, names),
    )


def _occupants(
    waits: Sequence[Waits], names: Sequence[Mapping[int, NamedThread]]
) -> tuple[Occupant, ...]:
    """What ran instead: threads of the same name are added up."""
    cycles: dict[NamedThread, int] = {}
    for storm, of_storm in zip(waits, names, strict=True):
        for thread, ran in storm.by_thread.items():
            named = _SEVERAL if thread == SEVERAL else of_storm.get(thread, _ENDED)
            cycles[named] = cycles.get(named, 0) + ran
    total = sum(cycles.values())
    ordered = sorted(cycles.items(), key=lambda item: (-item[1], item[0].kind, item[0].name))
    found = [Occupant(t.kind, t.name, ran / total) for t, ran in ordered[:_MOST_OCCUPANTS]]
    rest = sum(ran for _, ran in ordered[_MOST_OCCUPANTS:])
    if rest:
        found.append(Occupant(ThreadKind.OTHERS, _OTHERS, rest / total))
    return tuple(found)


def _ple_exits(exits: ExitsPerIpi, absent: dict[str, str]) -> PerSide | None:
    if exits.source != KVM_EXIT_SOURCE:
        absent["ple_exits"] = "kvm_exit never fired, and KVM's statistics do not count these exits"
        return None

    def of_side(side: Mapping[str, float] | None) -> float:
        return sum((side or {}).get(name, 0.0) for name in PAUSE_EXITS)

    return PerSide(of_side(exits.sender), of_side(exits.target))


def _ple_updates(measured: Measured, proven: Sides, absent: dict[str, str]) -> PerSide | None:
    kind = Kind.KVM_PLE_WINDOW_UPDATE
    counted = [r.seen[kind] for r in measured.proving if r.seen is not None]
    name = HOST_EVENT_OF[kind].name
    if name in measured.left_out or not counted:
        absent["ple_window_updates"] = measured.left_out.get(name, _UNTRACED)
        return None
    return proven.per_ipi(np.sum(counted, axis=0))


def _counter(
    storms: Iterable[Repetition], sides: Sides, name: str, field: str, absent: dict[str, str]
) -> PerSide | None:
    """A counter of KVM's statistics per IPI, also if it did not change."""
    parts = []
    for storm in storms:
        if storm.stats is None or not all(name in moved for moved in storm.stats):
            no_counter = f"this KVM's statistics have no {name}"
            absent[field] = storm.no_stats if storm.stats is None else no_counter
            return None
        parts.append([of_vcpu[name] for of_vcpu in storm.stats])
    return sides.per_ipi(np.sum(parts, axis=0))
