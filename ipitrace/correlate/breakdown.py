# SPDX-License-Identifier: Apache-2.0
"""The cycles of D by stage: the sequences of stages, and the steps of the dominant one."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ipitrace.correlate.spans import Spans
from ipitrace.correlate.stamps import ABSENT, NEVER
from ipitrace.words.stages import STAGES, Stage

_NAMED_SEQUENCES = 3
_BESIDE_TARGET = np.isin(np.arange(len(Stage)), (Stage.APICV_ACCEPT, Stage.KICK))
_BETWEEN = np.array(
    [s.stage for s in STAGES if s.critical and s.stage not in {Stage.SEND, Stage.HANDLER}]
)


@dataclass(frozen=True)
class Followed:
    """A sequence of critical stages, in order, and the number of IPIs with it."""

    stages: tuple[Stage, ...]
    spans: int


@dataclass(frozen=True)
class Step:
    """One stage of the dominant sequence.

    Attributes:
        since_send_cycles: median of stage minus send, over the spans that have the stage.
        step_cycles: median of stage minus the critical stage before it; None for stages that
            are not critical and for the send itself.
        step_low: the least of the parts' medians of the step; step_high: the largest. None for
            the same stages, and for a single part.
        share_of_deliver: the sum of these steps divided by the sum of D; None as above.
        resolved: the step is not shorter than the clock's error bound, or both ends are guest
            stamps, or both are host stamps. Stamps of one clock have the same error.
    """

    stage: Stage
    spans: int
    since_send_cycles: int
    step_cycles: int | None
    share_of_deliver: float | None
    resolved: bool
    step_low: int | None = None
    step_high: int | None = None


@dataclass(frozen=True)
class Breakdown:
    """The stage breakdown of one scenario.

    Attributes:
        spans: the number of spans with a handler entry and an undisturbed clock; all others
            are excluded.
        sequences: the most frequent ones, dominant first, at most three.
        steps: those of the dominant sequence, and the other stages of the same spans.
    """

    spans: int
    sequences: tuple[Followed, ...]
    steps: tuple[Step, ...]


def break_down(parts: Sequence[Spans], bound_cycles: int) -> Breakdown | None:
    """Break the D of all `parts` together into steps; None if no span was delivered.

    Args:
        parts: the spans of one scenario's repetitions.
        bound_cycles: the clock's error bound for host events.
    """
    if not parts:
        return None
    of_parts = [_since_send(part) for part in parts]
    since = np.concatenate(of_parts)
    if not len(since):
        return None
    part_of = np.repeat(np.arange(len(of_parts)), [len(part) for part in of_parts])
    order = _in_order(since)
    _codes, first, inverse, counts = np.unique(
        _one_number_a_row(order), return_index=True, return_inverse=True, return_counts=True
    )
    by_count = np.argsort(-counts, kind="stable")[:_NAMED_SEQUENCES]
    sequences = tuple(Followed(_sequence(order[first[i]]), int(counts[i])) for i in by_count)
    chosen = inverse.reshape(-1) == by_count[0]
    return Breakdown(
        spans=len(since),
        sequences=sequences,
        steps=tuple(_steps(since[chosen], part_of[chosen], sequences[0].stages, bound_cycles)),
    )


def _since_send(spans: Spans) -> NDArray[np.int64]:
    """Cycles since the send for every delivered span that is not suspect; NEVER if absent."""
    tsc = spans.tsc[(spans.stage(Stage.HANDLER) != ABSENT) & ~spans.suspect]
    send = tsc[:, Stage.SEND : Stage.SEND + 1]
    return np.where(tsc == ABSENT, NEVER, tsc - np.where(tsc == ABSENT, 0, send))


def came_late(tsc: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which stages did not lead to the handler; shape (n, len(Stage)), as `tsc`.

    After the notification, the sender's thread goes on beside its target: what it does after
    the handler's begin is not part of D.
    """
    handler = tsc[:, Stage.HANDLER : Stage.HANDLER + 1]
    late = (handler != ABSENT) & (tsc > handler)
    return np.asarray(late & _BESIDE_TARGET)


def _in_order(since: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each span its critical stages in order of time: places in _BETWEEN from 1, then zeros.

    The send and the handler are excluded: they are first and last, regardless of the clock's
    error.
    """
    between = np.where(came_late(since), NEVER, since)[:, _BETWEEN]
    order = np.argsort(between, axis=1, kind="stable")
    return np.where(np.take_along_axis(between, order, axis=1) == NEVER, 0, order + 1)


def _one_number_a_row(order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Equal numbers for equal rows, and in the order of the rows.

    A row is read as a number in base `len(_BETWEEN) + 1`. Before that exceeds 64 bits, the
    numbers so far are replaced by their ranks, which are few.
    """
    base = len(_BETWEEN) + 1
    codes, values = np.zeros(len(order), np.int64), 1
    for column in order.T:
        if values * base > NEVER:
            distinct, codes = np.unique(codes, return_inverse=True)
            values = len(distinct)
        codes = codes * base + column
        values *= base
    return codes


def _sequence(places: NDArray[np.int64]) -> tuple[Stage, ...]:
    """The stages of one row of _in_order()."""
    between = (Stage(int(_BETWEEN[place - 1])) for place in places if place)
    return (Stage.SEND, *between, Stage.HANDLER)


def _steps(
    since: NDArray[np.int64],
    part_of: NDArray[np.int64],
    sequence: tuple[Stage, ...],
    bound_cycles: int,
) -> list[Step]:
    """Steps of spans that all followed `sequence`, in order of their medians."""
    total = float(since[:, Stage.HANDLER].sum())
    before = dict(zip(sequence[1:], sequence[:-1], strict=True))
    steps = []
    for spec in STAGES:
        present = since[:, spec.stage] != NEVER
        if not present.any():
            continue
        stamps = since[present, spec.stage]
        step_cycles = share = low = high = None
        resolved = True
        if spec.stage in before:
            former = before[spec.stage]
            cycles = since[:, spec.stage] - since[:, former]
            step_cycles = _median(cycles)
            medians = [_median(cycles[part_of == part]) for part in np.unique(part_of)]
            if len(medians) > 1:
                low, high = min(medians), max(medians)
            share = float(cycles.sum()) / total if total else None
            one_clock = spec.guest == STAGES[former].guest
            resolved = one_clock or step_cycles >= bound_cycles
        steps.append(
            Step(
                spec.stage,
                int(present.sum()),
                _median(stamps),
                step_cycles,
                share,
                resolved,
                low,
                high,
            )
        )
    position = {stage: i for i, stage in enumerate(sequence)}
    return sorted(steps, key=lambda s: (s.since_send_cycles, position.get(s.stage, len(STAGES))))


def _median(values: NDArray[np.int64]) -> int:
    return int(np.percentile(values, 50, method="inverted_cdf"))


def path_shares(parts: Sequence[Spans]) -> dict[int, float]:
    """Share of all spans on each path, by IpiPath number, largest first."""
    paths = np.concatenate([part.path for part in parts]) if parts else np.empty(0, np.int8)
    if not len(paths):
        return {}
    numbers, counts = np.unique(paths, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return {int(numbers[i]): float(counts[i] / len(paths)) for i in order}
