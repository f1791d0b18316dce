# SPDX-License-Identifier: Apache-2.0
"""What ipitrace's programs weigh, and stages without this weight. docs/observer.md derives it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from ipitrace.correlate.exits import ExitTable
from ipitrace.correlate.spans import Spans
from ipitrace.correlate.stamps import ABSENT
from ipitrace.correlate.weights import WEIGHED, TwinDistance
from ipitrace.recording.row import EventWeights
from ipitrace.summary.storms import Measured, Repetition
from ipitrace.words.events import Kind
from ipitrace.words.scenarios import Mode
from ipitrace.words.stages import KIND_OF_STAGE, STAGES, Stage

_AFTER_STAMP: Final = 0.28
"""The part of a usual event's weight that follows its stamp, as `make lab-truth` found it.

It is the same code for all events: the rest of the record."""

_UNRECORDED: Final = 0.58
"""The part of a usual event's weight that a program has which makes no record: `make bench-lab`."""
_SIDES: Final = [
    [spec.stage for spec in STAGES if spec.side == side and not spec.guest]
    for side in ("sender", "target")
]


@dataclass(frozen=True)
class Weights:
    """What one event of each kind costs the thread in which it happens, in guest cycles.

    Attributes:
        twins: the distance of two copies' stamps of the same event: a program, and the way from
            one program of a tracepoint to the next.
        rest: what this lacks: the enabled tracepoint around the first program, less the way
            between two. It is the same for all kinds.
    """

    twins: Mapping[Kind, float]
    rest: float = 0.0

    @property
    def usual(self) -> float:
        """The median weight of KVM's events."""
        of_kvm = [cycles for kind, cycles in self.twins.items() if kind.name.startswith("KVM_")]
        known = of_kvm or list(self.twins.values()) or [0.0]
        return max(float(np.median(known)) + self.rest, 0.0)

    @property
    def cycles(self) -> NDArray[np.float64]:
        """The weight of an event of each kind of WEIGHED, then that of one without a record.

        A kind that has no twins has the usual weight. Shape (len(WEIGHED) + 1,).
        """
        recorded = [
            max(self.twins[kind] + self.rest, 0.0) if kind in self.twins else self.usual
            for kind in WEIGHED
        ]
        return np.array([*recorded, _UNRECORDED * self.usual])

    @classmethod
    def of(cls, recorded: EventWeights) -> Self:
        """The weights that run.json has; events that this version does not know are left out."""
        kinds = {kind.name.lower(): kind for kind in WEIGHED}
        twins = {kinds[n]: cycles for n, cycles in recorded.twin_cycles.items() if n in kinds}
        return cls(twins, recorded.rest_cycles)

    def result(self) -> EventWeights:
        """The weights, as run.json has them."""
        return EventWeights(
            {kind.name.lower(): round(cycles, 1) for kind, cycles in self.twins.items()},
            round(self.rest, 1),
        )


def weigh(measured: Measured, cycles_per_ns: float | None) -> Weights | None:
    """The weights of a scenario's events.

    The rest is the median of what an event of a send adds to S beyond its program, over the pairs
    of a repetition without probes and one with those of the stages. D has no part in it.

    Args:
        measured: the scenario.
        cycles_per_ns: guest cycles in a ns; None if not known.

    Returns:
        None if no event was stamped by two copies of its program, or the sender had no event.
    """
    found: dict[Kind, list[TwinDistance]] = {}
    for repetition in measured.of(Mode.EVIDENCE):
        for kind, distance in repetition.twins.items():
            found.setdefault(kind, []).append(distance)
    if not found or cycles_per_ns is None:
        return None
    twins = Weights({kind: _mean_ns(parts) * cycles_per_ns for kind, parts in found.items()})
    rests = list(_rests(measured, twins))
    return replace(twins, rest=float(np.median(rests))) if rests else None


def _mean_ns(parts: Sequence[TwinDistance]) -> float:
    return float(np.average([p.ns for p in parts], weights=[p.pairs for p in parts]))


def _rests(measured: Measured, twins: Weights) -> Iterator[float]:
    """The cycles that an event of a send adds to S, less its program; one of each block."""
    for off, stages in zip(measured.of(Mode.OFF), measured.of(Mode.STAGES), strict=False):
        events = _events_of_send(stages)
        if events is None or not events.sum() or not len(off.cycles.send):
            continue
        added = float(np.median(stages.cycles.send)) - float(np.median(off.cycles.send))
        yield (added - float(events @ twins.cycles)) / float(events.sum())


def _events_of_send(repetition: Repetition) -> NDArray[np.float64] | None:
    """The events of the sending instruction by kind; the median over its IPIs."""
    spans = None if repetition.watched is None else repetition.watched.spans
    if spans is None or spans.passed is None or not len(spans.seq):
        return None
    return np.asarray(np.median(spans.passed[:, Stage.SENT], axis=0), np.float64)


def without_weight(spans: Spans, weights: Weights) -> Spans:
    """The spans as if nothing had been traced."""
    if spans.passed is None:
        return spans
    return replace(spans, tsc=stamps_without_weight(spans.tsc, spans.passed, weights))


def without_weight_in_exits(
    table: ExitTable, weights: Weights | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`cycles` and `in_deliver_cycles` of exits as if nothing had been traced.

    They are as recorded if `weights` is None, or if the programs in them were not counted.
    ABSENT stays, and no length is negative.
    """
    if weights is None or table.passed is None or table.in_deliver_passed is None:
        return table.cycles, table.in_deliver_cycles
    each = np.append(weights.cycles, -_AFTER_STAMP * weights.usual)
    cycles = np.maximum(table.cycles - np.rint(table.passed @ each).astype(np.int64), 0)
    covered = table.in_deliver_cycles - np.rint(table.in_deliver_passed @ each).astype(np.int64)
    return np.where(table.cycles == ABSENT, ABSENT, cycles), np.maximum(covered, 0)


def stamps_without_weight(
    tsc: NDArray[np.int64], passed: NDArray[np.uint8], weights: Weights
) -> NDArray[np.int64]:
    """The stages' stamps as if nothing had been traced; shape (n, len(Stage)).

    A stage's stamp was delayed by all programs that ran between the send and the stage, and by
    that part of its own event's weight that precedes the stamp.

    Args:
        tsc: as recorded; ABSENT stays.
        passed: see correlate.weights.programs_passed().
        weights: of the events.
    """
    cycles = weights.cycles
    own = np.zeros(len(Stage))
    for stage, kind in KIND_OF_STAGE.items():
        own[stage] = max(cycles[WEIGHED.index(kind)] - _AFTER_STAMP * weights.usual, 0.0)
    delay = np.rint(passed @ cycles + own).astype(np.int64)
    lighter = np.where(tsc == ABSENT, ABSENT, tsc - delay)
    for side in _SIDES:
        lighter[:, side] = _in_order(lighter[:, side], tsc[:, side])
    return lighter


def _in_order(tsc: NDArray[np.int64], recorded: NDArray[np.int64]) -> NDArray[np.int64]:
    """The stamps of one thread, none before one that was recorded before it.

    Weights are those of a usual event: for events that follow each other at once, they may be
    more than what is between the two.
    """
    order = np.argsort(recorded, axis=1, kind="stable")
    ascending = np.maximum.accumulate(np.take_along_axis(tsc, order, axis=1), axis=1)
    result = np.empty_like(tsc)
    np.put_along_axis(result, order, ascending, axis=1)
    return result
