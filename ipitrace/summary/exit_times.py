# SPDX-License-Identifier: Apache-2.0
"""How long exits take, by reason: of the repetitions that recorded only the stages' events."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ipitrace.correlate.exit_programs import IN_DELIVER
from ipitrace.correlate.exits import ExitTable
from ipitrace.correlate.stamps import ABSENT
from ipitrace.recording.row import ExitTime
from ipitrace.summary.exits import by_reason
from ipitrace.summary.stats import summarise
from ipitrace.summary.storms import HostSide, Measured
from ipitrace.summary.weights import Weights, without_weight, without_weight_in_exits
from ipitrace.words.scenarios import Mode
from ipitrace.words.stages import Stage

_RARE: Final = 0.05
"""Reasons with a smaller share of the exits of one signature are not named for it."""

_UNKNOWN: Final = "reason not recorded"
"""Of an exit that has no like in mode EVIDENCE."""

_Key = tuple[str, int]  # side, signature


@dataclass
class _Group:
    """The exits of one reason on one side."""

    cycles: list[NDArray[np.int64]]
    in_deliver_cycles: int = 0


def exit_times(measured: Measured, weights: Weights | None) -> tuple[ExitTime, ...]:
    """The duration of exits by side and reason, the largest share of D first.

    They are of mode STAGES, without the weight of ipitrace's programs if that is known. In this
    mode kvm_exit has no reason: an exit has the reason that exits of the same side with the same
    events inside have in mode EVIDENCE. Without exits in mode STAGES, as in recordings of
    version 1, they are of the repetitions that recorded all events, with the weight.
    """
    proving = [r.watched for r in measured.proving if r.watched is not None]
    staged = [r.watched for r in measured.of(Mode.STAGES) if r.watched is not None]
    light = any(len(table.reason) for w in staged for table in w.exits)
    chosen = staged if light else proving
    senders = frozenset(route.sender for route in measured.routes)
    reasons = _reasons(proving, senders) if light else {}
    removed = weights if light else None
    groups: dict[tuple[str, str], _Group] = {}
    for table in (table for watched in chosen for table in watched.exits):
        cycles, in_deliver = without_weight_in_exits(table, removed)
        for name, hit in _named(table, reasons, senders) if light else by_reason(table):
            group = groups.setdefault((_side(table, senders), name), _Group([]))
            group.cycles.append(cycles[hit])
            group.in_deliver_cycles += int(in_deliver[hit].sum())
    deliver = sum(_deliver_cycles(watched, removed) for watched in chosen)
    rows = (
        _row(side, name, group, deliver, removed=removed is not None)
        for (side, name), group in groups.items()
    )
    return tuple(sorted(rows, key=lambda row: (row.side, -row.share_of_deliver, row.reason)))


def _row(side: str, name: str, group: _Group, deliver: int, *, removed: bool) -> ExitTime:
    cycles = np.concatenate(group.cycles)
    paired = summarise(cycles[cycles != ABSENT])
    return ExitTime(
        side=side,
        reason=name,
        exits=len(cycles),
        unpaired=int(np.count_nonzero(cycles == ABSENT)),
        p50_cycles=paired.p50 if paired else None,
        p99_cycles=paired.p99 if paired else None,
        share_of_deliver=group.in_deliver_cycles / deliver if deliver else 0.0,
        without_weight=removed or None,
    )


def _side(table: ExitTable, senders: frozenset[int]) -> str:
    return "sender" if table.vcpu in senders else "target"


def _deliver_cycles(watched: HostSide, weights: Weights | None) -> int:
    """The sum of D of the IPIs that were delivered."""
    spans = watched.spans if weights is None else without_weight(watched.spans, weights)
    handler, send = spans.stage(Stage.HANDLER), spans.stage(Stage.SEND)
    return int((handler - send)[handler != ABSENT].sum())


def _reasons(proving: Sequence[HostSide], senders: frozenset[int]) -> dict[_Key, str]:
    """The reason of exits by side and signature; several if no single one can be told."""
    found: dict[_Key, Counter[str]] = {}
    for table in (table for watched in proving for table in watched.exits):
        for name, hit in by_reason(table):
            for signature, n in zip(
                *np.unique(table.signature[hit], return_counts=True), strict=True
            ):
                for key in (int(signature), int(signature) & ~int(IN_DELIVER)):
                    found.setdefault((_side(table, senders), key), Counter())[name] += int(n)
    return {key: _told(counts) for key, counts in found.items()}


def _told(counts: Counter[str]) -> str:
    usual = [name for name, n in counts.most_common() if n >= _RARE * counts.total()]
    return " or ".join(usual)


def _named(
    table: ExitTable, reasons: dict[_Key, str], senders: frozenset[int]
) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """The reasons of exits that were recorded without one, and which exits have each."""
    side = _side(table, senders)
    for signature in np.unique(table.signature).tolist():
        alike = reasons.get((side, signature & ~IN_DELIVER), _UNKNOWN)
        yield reasons.get((side, signature), alike), table.signature == signature
