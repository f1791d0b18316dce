# SPDX-License-Identifier: Apache-2.0
"""A comparison as tables: for a terminal, and as Markdown for the summary page of a CI job."""

from collections.abc import Iterable, Sequence

from ipitrace.base.console import PIPE_WIDTH
from ipitrace.base.foreign import map_strings, plain
from ipitrace.compare.anchors import Anchor
from ipitrace.compare.model import Comparison, Figures, FingerprintDifference, Row, Verdict
from ipitrace.compare.wording import how_many, spell, spell_change, spell_p, tell_difference
from ipitrace.render.grid import columns_of, fill, table
from ipitrace.render.markdown import begins_line, escaped_table
from ipitrace.render.markdown import markdown as markdown_text
from ipitrace.render.page import TextPage

_MOST_CHARS = 1000
_WITHOUT_END = 100_000  # columns; a table this wide never wraps
_MILLION = 1_000_000  # cycles; larger figures are printed in millions
_WIDE = ("scenario", "metric", "n", "base", "[95 %]", "patched", "[95 %]")
_WIDE_HEADERS = (*_WIDE, "change", "[95 %]", "p", "effect", "verdict")
_WIDE_TEXT = (0, 1, 11)
_HEADERS = (
    *("metric\nn", "base\n[95 %]", "patched\n[95 %]", "change\n[95 %]"),
    "verdict\np, effect",
)
_TEXT = (0, 4)
_CHANGE = (
    "change: the median of all quotients of a patched value and a base value, minus 1; without %, "
    "the median of all their differences. It is not computed from the two medians beside it "
    "(docs/statistics.md)"
)
_ONE_EACH = (
    "note: each side has one recording, so differences from run to run are part of every change; "
    "use several recordings a side, or 'ipitrace ab' (docs/statistics.md, False alarms)"
)
_APART = (
    "note: one side was measured completely before the other, so a drift of the host is part of "
    "every change; 'ipitrace ab' alternates between the sides"
)


def render_comparison(
    comparison: Comparison,
    *,
    every: bool,
    markdown: bool = False,
    width: int = PIPE_WIDTH,
    whole_verdict: bool = True,
) -> str:
    """One comparison as text or Markdown.

    Args:
        comparison: the comparison.
        every: show all metrics; by default the headline metrics and those that changed.
        markdown: return Markdown; the width has no effect then.
        width: of the terminal, in columns.
        whole_verdict: the verdict, which is last, is never wrapped.
    """
    made_harmless = markdown_text if markdown else _line
    comparison = map_strings(comparison, made_harmless)
    shown = [
        row
        for row in comparison.rows
        if every or row.headline or row.verdict not in {Verdict.SAME, Verdict.INCONCLUSIVE}
    ]
    heading = _heading(comparison)
    tables = (
        [escaped_table(_WIDE_HEADERS, list(map(_wide_cells, shown)), _WIDE_TEXT)]
        if markdown and shown
        else _tables(shown, width)
    )

    def told(text: str) -> str:
        return text if markdown else fill(text, width)

    sections = [
        f"### {heading}" if markdown else told(heading),
        *tables,
        told(_CHANGE) if shown else "",
        _not_shown(comparison.rows, shown),
        *map(told, [*_undecided(shown), *_missing(comparison)]),
        *(_difference(d, width, markdown=markdown) for d in comparison.differences),
        *map(told, _notes(comparison, shown)),
        _gates(comparison, markdown=markdown, width=width),
        _verdict(comparison, width, markdown=markdown, whole=whole_verdict),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def render_anchors(
    anchors: Iterable[Anchor], *, markdown: bool = False, width: int = PIPE_WIDTH
) -> str:
    """The published figures, separate from all measured ones."""
    headers = ("published", "what", "set-up", "source")
    lines = [
        (a.figures, a.what, a.setup, a.source + ("" if a.seen else " (second-hand)"))
        for a in anchors
    ]
    title = "Published by others, for other machines; not comparable with the figures below"
    if markdown:
        shown = escaped_table(headers, lines, range(len(headers)))
    else:
        shown = "\n".join(fill(line, width, "", " " * 4) for line in map("; ".join, lines))
    return f"{title}\n\n{shown}\n"


def _verdict(comparison: Comparison, width: int, *, markdown: bool, whole: bool) -> str:
    if markdown:
        return f"**{comparison.sentence.strip()}**"
    return comparison.sentence if whole else fill(comparison.sentence, width)


def _line(text: str) -> str:
    """`text` as plain() makes it, long enough for a sentence."""
    return plain(text, _MOST_CHARS)


def _heading(comparison: Comparison) -> str:
    return " against ".join(
        f"{side.name} ({side.kernel or 'kernel unknown'}"
        + (f", {side.recordings} recordings)" if side.recordings > 1 else ")")
        for side in (comparison.patched, comparison.base)
    )


def _tables(rows: Sequence[Row], width: int) -> list[str]:
    """One table for each scenario; a metric takes one line where all fit, otherwise two."""
    return [
        f"{scenario}\n" + _of_scenario([row for row in rows if row.scenario == scenario], width)
        for scenario in dict.fromkeys(row.scenario for row in rows)
    ]


def _of_scenario(rows: Sequence[Row], width: int) -> str:
    flat = table(
        _WIDE_HEADERS[1:],
        [_wide_cells(row)[1:] for row in rows],
        text=[i - 1 for i in _WIDE_TEXT],
        width=_WITHOUT_END,
    )
    if max(map(columns_of, flat.splitlines())) <= width:
        return flat
    return table(_HEADERS, list(map(_cells, rows)), text=_TEXT, width=width)


def _cells(row: Row) -> tuple[str, ...]:
    one = _wide_cells(row)
    return (
        f"{row.metric}\nn {one[2]}",
        *(f"{one[i]}\n{one[i + 1]}" for i in (3, 5, 7)),
        f"{row.verdict}\n{one[9]}, {one[10]}",
    )


def _wide_cells(row: Row) -> tuple[str, ...]:
    n = str(row.base.n) if row.base.n == row.patched.n else f"{row.base.n}/{row.patched.n}"
    return (
        *(row.scenario, row.metric, n),
        *_figures(row.base, row.unit),
        *_figures(row.patched, row.unit),
        *spell_change(row),
        spell_p(row.p_corrected),
        f"{row.effect:+.2f}",
        row.verdict,
    )


def _figures(figures: Figures, unit: str) -> tuple[str, str]:
    def spelled(value: float) -> str:
        if unit != "cycles":
            return f"{value:.3f}"
        return f"{value:.0f}" if value < _MILLION else f"{value / _MILLION:.4g}M"

    if figures.low is None or figures.high is None:
        return spelled(figures.median), "-"
    return spelled(figures.median), f"{spelled(figures.low)}..{spelled(figures.high)}"


def _missing(comparison: Comparison) -> Iterable[str]:
    for m in comparison.missing:
        yield f"not compared: {m.metric} of {m.scenario}: {m.why}"


def _notes(comparison: Comparison, shown: Sequence[Row]) -> Iterable[str]:
    base, patched = comparison.base, comparison.patched
    drifting = [row for row in shown if row.headline and row.between_recordings is not None]
    for scale in dict.fromkeys(row.scale for row in drifting):
        alike = [row for row in drifting if row.scale == scale]
        row = max(alike, key=lambda row: row.between_recordings or 0)
        most = spell(row, row.between_recordings or 0).lstrip("+")
        yield (f"recordings of one side differ by up to {most} in {row.metric} of {row.scenario}")
    if comparison.interleaved:
        return
    if base.recordings == patched.recordings == 1:
        yield _ONE_EACH
    elif base.last_started_at <= patched.started_at or patched.last_started_at <= base.started_at:
        yield _APART


def _difference(difference: FingerprintDifference, width: int, *, markdown: bool) -> str:
    """One line for a value, one for each key of a mapping that differs."""
    told = [(key, f"{old} -> {new}") for key, old, new in tell_difference(difference)]
    if told and told[0][0] == difference.key:
        text = f"differs: {difference.key}: {told[0][1]} ({difference.accepted})"
        return text if markdown else fill(text, width)
    title = f"differs: {difference.key} ({difference.accepted}):"
    lines = [f"{key}: {values}" for key, values in told]
    if markdown:  # and escaped already
        return f"{title}\n\n" + "\n".join(f"- {begins_line(line)}" for line in lines)
    return TextPage(width).items(title, lines)


def _not_shown(rows: Sequence[Row], shown: Sequence[Row]) -> str:
    hidden = len(rows) - len(shown)
    if not hidden:
        return ""
    if hidden == 1:
        return "1 more metric without a significant change; --all shows it."
    return f"{hidden} more metrics without a significant change; --all shows them."


def _undecided(rows: Sequence[Row]) -> Iterable[str]:
    """Why metrics are undecided, and the smallest and largest numbers of units that would do."""
    for why in dict.fromkeys(row.why for row in rows if row.why):
        rest = sorted((row for row in rows if row.why == why), key=lambda row: row.wanted or 0)
        most, least = rest[-1], rest[0]
        units = "recordings" if most.between_recordings is not None else "repetitions"
        more = (
            f", {how_many(most.wanted)} for {most.metric} of {most.scenario}"
            if len(rest) > 1
            else ""
        )
        yield (
            f"inconclusive: {why} in {len(rest)} metric{'s' if len(rest) > 1 else ''}; each side "
            f"needs {how_many(least.wanted)} {units} for {least.metric} of {least.scenario}{more}"
        )


def _gates(comparison: Comparison, *, markdown: bool, width: int) -> str:
    if not comparison.gates:
        return ""
    headers = ("gate", "kind", "scenario", "metric", "p", "state", "why")
    lines = [
        (g.gate, g.kind, g.scenario, g.metric, spell_p(g.p_corrected), g.state, g.why)
        for g in comparison.gates
    ]
    if markdown:
        return escaped_table(headers, lines, range(len(headers)))
    return table(headers, lines, text=(0, 1, 2, 3, 5, 6), width=width)
