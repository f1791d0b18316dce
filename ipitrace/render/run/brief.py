# SPDX-License-Identifier: Apache-2.0
"""A run on one screen: what an IPI costs, where D goes, and what speaks against the numbers."""

from collections.abc import Iterator, Sequence
from typing import Final

from ipitrace.base.console import PIPE_WIDTH, Style, styled
from ipitrace.base.foreign import plain_values
from ipitrace.base.units import cycles_to_ns
from ipitrace.recording.result import RunResult
from ipitrace.recording.row import Histogram, ScenarioResult, StageStep
from ipitrace.render.grid import clipped, fill
from ipitrace.render.page import TextPage
from ipitrace.render.run.guest import guest_line, limits_line
from ipitrace.render.run.notes import DOUBT, NOTE, not_measured, notes_of
from ipitrace.render.run.program_costs import program_costs
from ipitrace.words.metrics import ALL_TIMINGS, TIMINGS
from ipitrace.words.scenarios import ScenarioStatus
from ipitrace.words.sections import SECTIONS
from ipitrace.words.stages import Stage

_BLOCKS: Final = "▁▂▃▄▅▆▇█"
_ASCII: Final = "_.-=+*#@"
_CUT: Final = "..."
_MOST_NOTES: Final = 2
_TITLE: Final = "cycles, {}: S send, D deliver (bars: min to p90), R round trip; parts of D"
_EXIT, _KVM, _BOTH, _WAKE_UP, _ENTRY = "exit", "KVM", "exit+KVM", "wake-up", "entry"
_PART_OF_STAGE: Final = {
    Stage.SENDER_EXIT: _EXIT,
    Stage.IPI: _KVM,
    Stage.ACCEPT: _KVM,
    Stage.APICV_ACCEPT: _KVM,
    Stage.KICK: _KVM,
    Stage.TARGET_INTERRUPT: _WAKE_UP,
    Stage.TARGET_EXIT: _WAKE_UP,
    Stage.SCHED_IN: _WAKE_UP,
    Stage.WAKEUP: _WAKE_UP,
    Stage.INJECT: _ENTRY,
    Stage.TARGET_ENTRY: _ENTRY,
    Stage.HANDLER: _ENTRY,
}


def render_brief(run: RunResult, *, width: int = PIPE_WIDTH, unicode: bool = True) -> str:
    """The first screen of a run, with marks of styled(); then the probe costs, if there are any.

    Args:
        run: the results.
        width: of the terminal.
        unicode: draw distributions with block characters instead of ASCII.
    """
    run = plain_values(run)
    measured = [row for row in run.scenarios if row.status == ScenarioStatus.MEASURED]
    lines = [
        _host(run, width),
        fill(guest_line(run), width, "guest  "),
        *([] if run.limits is None else [fill(limits_line(run.limits), width, "limits ")]),
        _cut(_TITLE.format(_conditions(run)), width),
    ]
    for row in measured:
        lines += _scenario(run, row, width, _BLOCKS if unicode else _ASCII)
    lines += _remarks(run, measured, width)
    lines.append(fill(f"report DIR --section {'|'.join(SECTIONS)}", width, "more   "))
    costs = "".join(f"\n{part}\n" for part in program_costs(run.program_costs, TextPage(width)))
    return "\n".join(lines) + "\n" + costs


def _host(run: RunResult, width: int) -> str:
    """One line, unless the cycles of this host are not real time."""
    if run.emulator is not None:
        return fill(run.host.one_line, width, "host   ")
    return _cut(f"host   {run.host.one_line}", width)


def _conditions(run: RunResult) -> str:
    if run.observer is not None and run.schema_version == 1:
        return "traced"
    return "untraced"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else clipped(text, width - len(_CUT)) + _CUT


def _scenario(run: RunResult, row: ScenarioResult, width: int, marks: str) -> Iterator[str]:
    """Four lines: how it went, then S, D and R."""
    yield styled(row.name, Style.STRONG) + _cut(f"  {_way(row)}", width - len(row.name))
    beside = {"D": _drawn(row.deliver_histogram, marks), "R": _where_it_goes(row)}
    hz = run.clock.tsc_hz
    for timing in TIMINGS if row.last_deliver_cycles is None else ALL_TIMINGS:
        found = getattr(row, timing.field)
        if found is None:
            yield f"  {timing.letter} {'-':>9}"
            continue
        ns = f" {cycles_to_ns(found.p50, hz):8.0f} ns" if hz else ""
        figures = f"  {timing.letter} {found.p50:9d}{ns}  p99 {found.p99:9d}"
        yield _cut(f"{figures}  {beside.get(timing.letter, '')}".rstrip(), width)


def _way(row: ScenarioResult) -> str:
    """The paths and the exits of an IPI."""
    parts = [f"{row.sent} sent"]
    parts += [f"{name} {share:.0%}" for name, share in (row.paths or {}).items()]
    if row.exits is not None and row.exits.source is not None:
        sides = [(row.exits.sender or {}).get("exits", 0.0)]
        if row.exits.target is not None:
            sides.append(row.exits.target.get("exits", 0.0))
        parts.append(f"exits {' + '.join(f'{n:.2f}' for n in sides)} per IPI")
    return ", ".join(parts)


def _drawn(found: Histogram | None, marks: str) -> str:
    """The distribution of D."""
    if found is None:
        return ""
    most = max([*found.counts, 1])
    bars = "".join(marks[-(-n * (len(marks) - 1) // most)] if n else " " for n in found.counts)
    return f"{found.low} {bars} {found.high}"


def _where_it_goes(row: ScenarioResult) -> str:
    """The shares of D of the dominant sequence's parts."""
    if row.stages is None:
        return ""
    corrected = row.stages.corrected
    shown = corrected if corrected is not None and corrected.holds else row.stages
    shares: dict[str, float] = {}
    for step in shown.steps:
        if step.share_of_deliver is not None:
            name = _part(step, shown.steps)
            shares[name] = shares.get(name, 0.0) + step.share_of_deliver
    if list(shares) == [_ENTRY]:
        return "no host event on the way"
    return ", ".join(f"{name} {share:.0%}" for name, share in shares.items())


def _part(step: StageStep, steps: Sequence[StageStep]) -> str:
    """Without kvm_exit, the first step of KVM contains the exit."""
    exits = any(one.stage == Stage.SENDER_EXIT.name.lower() for one in steps)
    part = _PART_OF_STAGE[Stage[step.stage.upper()]]
    return _BOTH if part == _KVM and not exits else part


def _remarks(run: RunResult, measured: Sequence[ScenarioResult], width: int) -> Iterator[str]:
    """What was not measured, all doubts, and the first notes."""
    if run.observer is None and run.observer_absent is not None:
        yield styled(fill(run.observer_absent, width, NOTE), Style.NOTE)
    for text in not_measured(run):
        yield styled(fill(text, width, "not measured  "), Style.NOTE)
    found = notes_of(run, measured)
    doubts = [note for note in found if note.label == DOUBT]
    others = [note for note in found if note.label != DOUBT]
    for note in doubts:
        yield styled(fill(note.text, width, note.label), Style.DOUBT)
    shown = others if len(others) <= _MOST_NOTES else others[: _MOST_NOTES - 1]
    for note in shown:
        yield styled(_cut(note.label + note.text, width), Style.NOTE)
    if len(others) > len(shown):
        yield styled(f"note   {len(others) - len(shown)} more: --section losses", Style.NOTE)
