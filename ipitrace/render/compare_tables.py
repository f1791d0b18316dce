# SPDX-License-Identifier: Apache-2.0
"""A comparison as tables: for a terminal, and as Markdown for a job's page."""

from collections.abc import Iterable, Sequence

from tabulate import tabulate

from ipitrace.compare import tell_change
from ipitrace.compare.anchors import Anchor
from ipitrace.compare.model import Comparison, Figures, Row, Verdict

_HEADERS = (
    *("scenario", "metric", "n", "base", "[95 %]", "patched", "[95 %]"),
    *("change", "p", "effect", "verdict"),
)
_TEXT_COLUMNS = (0, 1, 10)
_ONE_AFTER_THE_OTHER = (
    "note: measured one after the other, so what differs between any two runs here is part of each "
    "change;\n'ipitrace ab' measures in turn (docs/statistics.md, False alarms)"
)


def render_comparison(comparison: Comparison, *, every: bool, markdown: bool = False) -> str:
    """One comparison; `every` shows all metrics, else the headline and whatever moved."""
    shown = [
        row
        for row in comparison.rows
        if every or row.headline or row.verdict not in {Verdict.SAME, Verdict.INCONCLUSIVE}
    ]
    heading = _heading(comparison)
    sections = [
        f"### {heading}" if markdown else heading,
        _table(_HEADERS, [_cells(row) for row in shown], _TEXT_COLUMNS, markdown=markdown),
        _not_shown(comparison.rows, shown),
        _undecided(shown),
        _differences(comparison),
        _gates(comparison, markdown=markdown),
        "" if comparison.interleaved else _ONE_AFTER_THE_OTHER,
        f"**{comparison.sentence}**" if markdown else comparison.sentence,
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def render_anchors(anchors: Iterable[Anchor], *, markdown: bool = False) -> str:
    """The published figures, apart from everything measured."""
    headers = ("published", "what", "set-up", "source")
    lines = [
        (a.figures, a.what, a.setup, a.source + ("" if a.seen else " (second-hand)"))
        for a in anchors
    ]
    title = "Published by others, on other machines; not comparable with ours below"
    table = _table(headers, lines, range(len(headers)), markdown=markdown)
    return f"{title}\n\n{table}\n"


def _heading(comparison: Comparison) -> str:
    base, patched = comparison.base, comparison.patched
    return f"{patched.name} ({patched.kernel}) against {base.name} ({base.kernel})"


def _cells(row: Row) -> tuple[str, ...]:
    n = str(row.base.n) if row.base.n == row.patched.n else f"{row.base.n}/{row.patched.n}"
    change, _comma, interval = tell_change(row).partition(", ")
    return (
        row.scenario,
        row.metric,
        n,
        *_figures(row.base, row.unit),
        *_figures(row.patched, row.unit),
        f"{change} [{interval.removeprefix('95% interval ')}]",
        f"{row.p_corrected:.3f}",
        f"{row.effect:+.2f}",
        row.verdict,
    )


def _figures(figures: Figures, unit: str) -> tuple[str, str]:
    def spelled(value: float) -> str:
        return f"{value:.0f}" if unit == "cycles" else f"{value:.3f}"

    if figures.low is None or figures.high is None:
        return spelled(figures.median), "-"
    return spelled(figures.median), f"{spelled(figures.low)}..{spelled(figures.high)}"


def _not_shown(rows: Sequence[Row], shown: Sequence[Row]) -> str:
    hidden = len(rows) - len(shown)
    if not hidden:
        return ""
    return f"{hidden} more metrics, none of which was found to differ; --all shows them."


def _undecided(rows: Sequence[Row]) -> str:
    """What the undecided metrics lack, and the most and least repetitions that would tell."""
    lines = []
    for why in dict.fromkeys(row.why for row in rows if row.why):
        rest = sorted(
            (row for row in rows if row.why == why), key=lambda row: row.repetitions_wanted or 0
        )
        most, least = rest[-1], rest[0]
        lines.append(
            f"inconclusive: {why} in {len(rest)} metrics; a side it takes about "
            f"{least.repetitions_wanted} repetitions for {least.metric} of {least.scenario}"
            + (
                f", {most.repetitions_wanted} for {most.metric} of {most.scenario}"
                if len(rest) > 1
                else ""
            )
        )
    return "\n".join(lines)


def _differences(comparison: Comparison) -> str:
    return "\n".join(
        f"differs: {d.key}: {d.base} against {d.patched} ({d.accepted})"
        for d in comparison.differences
    )


def _gates(comparison: Comparison, *, markdown: bool) -> str:
    if not comparison.gates:
        return ""
    headers = ("gate", "scenario", "metric", "held", "why")
    lines = [(g.gate, g.scenario, g.metric, g.held, g.why) for g in comparison.gates]
    return _table(headers, lines, range(len(headers)), markdown=markdown)


def _table(
    headers: Sequence[str],
    lines: Sequence[Sequence[str]],
    text_columns: Iterable[int],
    *,
    markdown: bool,
) -> str:
    left = set(text_columns)
    align = ["left" if i in left else "right" for i in range(len(headers))]
    style = "github" if markdown else "simple"
    return tabulate(lines, headers, tablefmt=style, colalign=align, disable_numparse=True)
