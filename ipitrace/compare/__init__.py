# SPDX-License-Identifier: Apache-2.0
"""Compares recordings: which side is better, by how much, and is that significant?

docs/statistics.md describes the statistics and the rules.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from ipitrace.base.errors import ExitCode, MeasurementError, UsageError
from ipitrace.compare.fingerprint import Named, check_comparable, check_side
from ipitrace.compare.gates import Gate, check_gates, named_counts
from ipitrace.compare.judging import judge
from ipitrace.compare.model import Comparison, GateState, MinimumEffect, Missing, Row, Side, Verdict
from ipitrace.compare.moves import moves
from ipitrace.compare.pairs import pairs
from ipitrace.compare.statistics import CONFIDENCE
from ipitrace.compare.versus import intended_differences, under_pairs
from ipitrace.compare.wording import gates_in_words, sentence

Recordings = Sequence[Named]
"""The recordings of one side."""


@dataclass(frozen=True)
class Settings:
    """How to compare.

    Attributes:
        scenarios: the scenarios to compare; empty means all.
        allow: keys that may differ although they must match.
        pairs: pairs of a scenario of the base and one of the other side to compare with each
            other. If there are any, nothing else is compared.
        interleaved: both sides were measured in alternation.
        strict: an undecided verdict or gate counts as failed.
    """

    gates: tuple[Gate, ...] = ()
    minimum: MinimumEffect = field(default_factory=MinimumEffect)
    allow: frozenset[str] = frozenset()
    scenarios: tuple[str, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()
    interleaved: bool = False
    strict: bool = False


def compare(
    base: Recordings, patched: Recordings, names: tuple[str, str], settings: Settings
) -> Comparison:
    """Compare two sides; `names` are the names that the user gave them.

    Raises:
        HostError, MeasurementError: they are not comparable, or one is not trustworthy.
        UsageError: a scenario or a gate matches nothing that was measured.
    """
    if settings.scenarios:
        base, patched = ([_only(r, settings.scenarios) for r in side] for side in (base, patched))
    allow = settings.allow
    if settings.pairs:
        base, patched = (
            [under_pairs(recording, settings.pairs, i) for recording in side]
            for i, side in enumerate((base, patched))
        )
        allow |= intended_differences(settings.pairs)
    for side in (base, patched):
        check_side(side, allow)
    differences = check_comparable(base[0], patched[0], allow)
    ours, theirs = ([run for _name, run in side] for side in (base, patched))
    found, missing = pairs(
        ours,
        theirs,
        cycles=ours[0].emulator == theirs[0].emulator,
        also=named_counts(settings.gates),
    )
    if not found:
        raise MeasurementError(
            f"{names[0]} and {names[1]} have no metric in common.", "Measure both sides again."
        )
    moved = moves(found)
    rows = (
        *judge([p for p in found if p.metric.headline], settings.minimum, moved),
        *judge([p for p in found if not p.metric.headline], settings.minimum, moved),
    )
    places = {(p.scenario, p.metric.name): i for i, p in enumerate(found)}
    rows = tuple(sorted(rows, key=lambda row: places[row.scenario, row.metric]))
    headline = [row for row in rows if row.headline]
    verdict = _overall(headline, missing)
    sides = (_side(base, names[0]), _side(patched, names[1]))
    gates = check_gates(settings.gates, rows)
    parts = (
        gates_in_words(gates),  # first, because gates decide
        sentence(verdict, headline, names, settings.minimum),
        *_caveats(*sides, interleaved=settings.interleaved),
    )
    return Comparison(
        base=sides[0],
        patched=sides[1],
        confidence=CONFIDENCE,
        interleaved=settings.interleaved,
        verdict=verdict,
        sentence=" ".join(filter(None, parts)),
        rows=rows,
        missing=missing,
        gates=gates,
        differences=differences,
    )


def exit_code(comparisons: Iterable[Comparison], *, strict: bool) -> ExitCode:
    """The exit code for the comparisons.

    If there are gates, they decide; otherwise the verdict does. A failure outranks an open gate.
    """
    found = list(comparisons)
    gated = any(c.gates for c in found)
    states = [g.state for c in found for g in c.gates]
    failed = GateState.BROKEN in states if gated else any(c.verdict == Verdict.WORSE for c in found)
    if failed:
        return ExitCode.REGRESSION
    undecided = (
        GateState.OPEN in states if gated else any(c.verdict == Verdict.INCONCLUSIVE for c in found)
    )
    return ExitCode.UNTRUSTWORTHY if strict and undecided else ExitCode.OK


def _only(recording: Named, scenarios: Sequence[str]) -> Named:
    name, run = recording
    rows = tuple(row for row in run.scenarios if row.name in scenarios)
    missing = sorted(set(scenarios) - {row.name for row in rows})
    if missing:
        raise UsageError(
            f"The run {name} has no scenario '{missing[0]}'.",
            f"It has {', '.join(row.name for row in run.scenarios)}.",
        )
    return name, replace(run, scenarios=rows)


def _side(recordings: Recordings, name: str) -> Side:
    started = sorted(run.started_at for _name, run in recordings)
    run = recordings[0][1]
    return Side(
        name,
        len(recordings),
        started[0],
        started[-1],
        run.kernel_release,
        run.ipitrace_version,
        run.emulator,
    )


def _overall(rows: Sequence[Row], missing: Sequence[Missing]) -> Verdict:
    verdicts = {row.verdict for row in rows}
    for verdict in (Verdict.WORSE, Verdict.BETTER):
        if verdict in verdicts:
            return verdict
    return Verdict.SAME if verdicts == {Verdict.SAME} and not missing else Verdict.INCONCLUSIVE


def _caveats(base: Side, patched: Side, *, interleaved: bool) -> Iterable[str]:
    """Notes on what the verdict does not take into account."""
    if base.emulated or patched.emulated:
        yield "Emulated host: cycles are not real time."
    if base.recordings == patched.recordings == 1 and not interleaved:
        yield "Each side has one recording: differences between runs are not taken into account."
