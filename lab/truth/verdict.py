# SPDX-License-Identifier: Apache-2.0
"""Compares the stages that ipitrace found, without the weight of its programs, with the truth."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from ipitrace.recording.result import RunResult
from lab.truth.truth import Truth

SHARE: Final = 0.05
TICKS: Final = 20  # a turn of one CPU is 16, and a stamp has the time of a turn's begin


@dataclass(frozen=True)
class Compared:
    """One step of one scenario, in ticks.

    Attributes:
        recorded: with the weight of the programs; None if it is not on the way to the handler.
        corrected: without it.
        true: while nothing was attached.
    """

    scenario: str
    stage: str
    recorded: int | None
    corrected: int | None
    true: int

    @property
    def allowed(self) -> int:
        """The largest accepted difference."""
        return max(round(SHARE * self.true), TICKS)

    @property
    def holds(self) -> bool:
        """The corrected step is as long as the true one."""
        return self.corrected is not None and abs(self.corrected - self.true) <= self.allowed


def compare(run: RunResult, truth: Truth) -> Iterator[Compared]:
    """Yield every step of the true stages' most frequent sequence, of every scenario."""
    for row in run.scenarios:
        part = truth.scenarios.get(row.name)
        if part is None or row.stages is None:
            continue
        corrected = row.stages.corrected
        raw = {s.stage: s.step_cycles for s in row.stages.steps}
        lighter = {s.stage: s.step_cycles for s in corrected.steps} if corrected else {}
        for step in part.steps:
            if step.step_cycles is not None:
                stage = step.stage.name.lower()
                yield Compared(
                    row.name, stage, raw.get(stage), lighter.get(stage), step.step_cycles
                )


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
