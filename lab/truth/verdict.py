# SPDX-License-Identifier: Apache-2.0
"""Compares the stages that ipitrace found, without the weight of its programs, with the truth."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from ipitrace.recording.result import RunResult
from ipitrace.recording.row import ScenarioResult
from ipitrace.words.stages import Stage
from lab.truth.truth import Truth

SHARE: Final = 0.05
INSTRUCTIONS: Final = 20  # a turn of one CPU is 16, and a stamp has the time of a turn's begin
REFERENCE: Final = "unicast-running"
UNSEEN: Final = frozenset({Stage.TARGET_INTERRUPT})


@dataclass(frozen=True)
class Compared:
    """One step of one scenario, in ticks.

    Attributes:
        recorded: with the weight of the programs; None if it is not on the way to the handler.
        corrected: without it.
        true: while nothing was attached.
        ticks: the ticks that 20 instructions take in this scenario.
    """

    scenario: str
    stage: str
    recorded: int | None
    corrected: int | None
    true: int
    ticks: int

    @property
    def allowed(self) -> int:
        """The largest accepted difference."""
        return max(round(SHARE * self.true), self.ticks)

    @property
    def holds(self) -> bool:
        """The corrected step is as long as the true one."""
        return self.corrected is not None and abs(self.corrected - self.true) <= self.allowed


def compare(run: RunResult, truth: Truth) -> Iterator[Compared]:
    """Yield every step of the stages that ipitrace found, of every scenario.

    A true stage that ipitrace cannot see is part of the next step: while its thread sleeps, an
    interrupt of the target's CPU is not an event of the target's thread.
    """
    usual = {row.name: _weight(row) for row in run.scenarios}
    for row in run.scenarios:
        part = truth.scenarios.get(row.name)
        if part is None or row.stages is None:
            continue
        corrected = row.stages.corrected
        raw = {s.stage: s.step_cycles for s in row.stages.steps}
        lighter = {s.stage: s.step_cycles for s in corrected.steps} if corrected else {}
        since = 0
        for step in part.steps:
            stage = step.stage.name.lower()
            if step.step_cycles is None or (lighter.get(stage) is None and step.stage in UNSEEN):
                continue
            yield Compared(
                row.name,
                stage,
                raw.get(stage),
                lighter.get(stage),
                step.since_send_cycles - since,
                _ticks(usual[row.name], usual.get(REFERENCE)),
            )
            since = step.since_send_cycles


def _weight(row: ScenarioResult) -> float | None:
    """What a usual program takes in this scenario, in ticks; None if no program ran."""
    corrected = row.stages and row.stages.corrected
    if not corrected or corrected.weights is None:
        return None
    twins = corrected.weights.twin_cycles.items()
    return statistics.median(ticks for event, ticks in twins if event.startswith("kvm_"))


def _ticks(here: float | None, reference: float | None) -> int:
    """The ticks of 20 instructions: a tick is the mean of what both CPUs execute.

    Where the target spins in the guest, an instruction of the sender takes a tick. The same
    program takes more ticks where the other CPU sleeps.
    """
    return INSTRUCTIONS if not here or not reference else round(INSTRUCTIONS * here / reference)


def table(rows: Sequence[Compared]) -> str:
    """The rows as text."""
    lines = [
        f"{'scenario':16}{'stage':18}{'recorded':>10}{'corrected':>10}{'true':>7}{'off by':>8}",
    ]
    for row in rows:
        off = "-" if row.corrected is None else f"{row.corrected - row.true:+d}"
        verdict = "" if row.holds else f"  more than {row.allowed}"
        lines.append(
            f"{row.scenario:16}{row.stage:18}{_number(row.recorded):>10}"
            f"{_number(row.corrected):>10}{row.true:>7}{off:>8}{verdict}"
        )
    return "\n".join(lines)


def _number(ticks: int | None) -> str:
    return "-" if ticks is None else str(ticks)
