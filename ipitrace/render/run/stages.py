# SPDX-License-Identifier: Apache-2.0
"""The table of a scenario's stages."""

from ipitrace.recording.row import CorrectedStages, ScenarioResult, StageBreakdown, StageStep
from ipitrace.render.page import Page, Table
from ipitrace.words.stages import GUEST_STAMPS

_GUEST_STAGES = {stage.name.lower() for stage in GUEST_STAMPS}


def stages_table(row: ScenarioResult, stages: StageBreakdown, page: Page) -> str:
    """The steps of the most frequent sequence: without the probes' weight where it is known."""
    corrected = stages.corrected
    shown = corrected if corrected is not None and corrected.holds else stages
    bound = stages.bound_cycles
    dominant = shown.sequences[0]
    lines = [_stage_cells(step, bound) for step in shown.steps]
    headers = ("stage", "vCPU", "since send", "step", "[interval]", "of D")
    followed = dominant.spans / stages.spans
    if shown is corrected:
        what = (
            "without the probes' weight: median cycles, in brackets the least and the largest of "
            "the repetitions' medians; of D: of the untraced p50 of D"
        )
    else:
        what = (
            "as recorded, with the probes' weight: median cycles; of D: the sum of the cycles of "
            "the step, divided by the sum of D, both of these IPIs (not a quotient of medians)"
        )
    title = (
        f"Stages of {row.name}, of the {dominant.spans} of {stages.spans} IPIs ({followed:.1%}) "
        f"with this sequence, {what}"
    )
    remarks = [] if corrected is None else [("  sum: ", _sum_words(corrected))]
    remarks += [
        (
            "  next: ",
            f"{sequence.spans} ({sequence.spans / stages.spans:.1%}) with the sequence "
            + " > ".join(sequence.stages),
        )
        for sequence in shown.sequences[1:]
    ]
    beside = "in mode evidence, with the weight of all probes; it does not lead to the handler"
    remarks += [
        (
            f"  {step.stage}: ",
            f"{step.since_send_cycles} cycles after the send ({step.side}) {beside}",
        )
        for step in stages.evidence_steps or ()
    ]
    if any(not step.resolved for step in shown.steps):
        unknown = (
            "shorter than the clock's error bound, or negative because the stage before is later; "
            "its length and share are not known"
        )
        remarks.append((f"  < {bound}: ", unknown))
    return page.table(title, Table(headers, lines, text=(0, 1)), remarks)


def _stage_cells(step: StageStep, bound_cycles: int) -> tuple[str, ...]:
    """One line; a step shorter than the clock's error has no figure."""
    unknown = f"< {bound_cycles}"
    since = f"{step.since_send_cycles}"
    if step.stage not in _GUEST_STAGES and step.since_send_cycles < bound_cycles:
        since = unknown
    if step.step_cycles is None:
        return step.stage, step.side, since, "", "", ""
    if not step.resolved:
        return step.stage, step.side, since, unknown, "", "?"
    interval = "" if step.step_low is None else f"[{step.step_low}, {step.step_high}]"
    share = f"{step.share_of_deliver:.1%}"
    return step.stage, step.side, since, f"{step.step_cycles}", interval, share


def _sum_words(corrected: CorrectedStages) -> str:
    """How well the stages add up."""
    found = (
        f"{corrected.sum_cycles} cycles without the probes' weight, D untraced "
        f"{corrected.deliver_cycles}, unexplained {corrected.unexplained:+.1%}"
    )
    if corrected.holds:
        return found
    return f"{found}: more than {corrected.limit:.0%}, so the table has the lengths as recorded"
