# SPDX-License-Identifier: Apache-2.0
"""The stages of a scenario: as recorded, and without the weight of ipitrace's programs."""

from typing import Final

import numpy as np

from ipitrace.correlate.breakdown import Breakdown, Step, break_down
from ipitrace.recording.row import CorrectedStages, StageBreakdown, StageSequence, StageStep
from ipitrace.summary.stats import median
from ipitrace.summary.storms import Measured
from ipitrace.summary.weights import Weights, without_weight
from ipitrace.words.scenarios import Mode
from ipitrace.words.stages import GUEST_STAMPS, KIND_OF_STAGE, STAGES

_LIMIT: Final = 0.05
"""How far the sum of the corrected stages may be from the untraced D, as a share of it."""


def stages_of(measured: Measured, weights: Weights | None) -> StageBreakdown | None:
    """The stages of the repetitions that recorded them; None if there are none.

    `weights` is what the programs weigh; None if it is not known.
    """
    watched = [r.watched for r in measured.of(Mode.STAGES) if r.watched is not None]
    spans = [w.spans for w in watched]
    found = break_down(spans, measured.bound_cycles)
    if found is None:
        return None
    corrected = None
    if weights is not None:
        lighter = break_down([without_weight(s, weights) for s in spans], measured.bound_cycles)
        corrected = None if lighter is None else _corrected(measured, lighter, weights)
    elif all(step.stage in GUEST_STAMPS for step in found.steps):
        corrected = _corrected(measured, found, None)
    return StageBreakdown(
        spans=found.spans,
        bound_cycles=measured.bound_cycles,
        sequences=_sequences(found),
        steps=tuple(_step(step) for step in found.steps),
        corrected=corrected,
        evidence_steps=_evidence_steps(measured) or None,
    )


def _evidence_steps(measured: Measured) -> tuple[StageStep, ...]:
    """The stages that mode STAGES does not record, as mode EVIDENCE recorded them."""
    watched = [r.watched for r in measured.of(Mode.EVIDENCE) if r.watched is not None]
    found = break_down([w.spans for w in watched], measured.bound_cycles)
    recorded = GUEST_STAMPS | set(KIND_OF_STAGE)
    return tuple(_step(s) for s in (found.steps if found else ()) if s.stage not in recorded)


def _corrected(
    measured: Measured, found: Breakdown, weights: Weights | None
) -> CorrectedStages | None:
    untraced = median(np.concatenate([r.cycles.deliver for r in measured.of(Mode.OFF)]))
    if not untraced:
        return None
    total = sum(step.step_cycles or 0 for step in found.steps)
    unexplained = total / untraced - 1
    return CorrectedStages(
        deliver_cycles=untraced,
        sum_cycles=total,
        unexplained=round(unexplained, 4),
        limit=_LIMIT,
        holds=abs(unexplained) <= _LIMIT,
        sequences=_sequences(found),
        steps=tuple(_step(step, untraced) for step in found.steps),
        weights=None if weights is None else weights.result(),
    )


def _sequences(found: Breakdown) -> tuple[StageSequence, ...]:
    return tuple(
        StageSequence(tuple(s.name.lower() for s in q.stages), q.spans) for q in found.sequences
    )


def _step(step: Step, deliver_cycles: int | None = None) -> StageStep:
    """A step; its share is of `deliver_cycles` if that is given."""
    share = step.share_of_deliver
    if deliver_cycles is not None and step.step_cycles is not None:
        share = step.step_cycles / deliver_cycles
    return StageStep(
        stage=step.stage.name.lower(),
        side=STAGES[step.stage].side,
        spans=step.spans,
        since_send_cycles=step.since_send_cycles,
        step_cycles=step.step_cycles,
        share_of_deliver=share,
        resolved=step.resolved,
        step_low=step.step_low,
        step_high=step.step_high,
    )
