# SPDX-License-Identifier: Apache-2.0
"""A comparison in words."""

from collections.abc import Sequence

from ipitrace.compare.model import MinimumEffect, Row, Verdict
from ipitrace.compare.statistics import CONFIDENCE
from ipitrace.metrics import Scale

NOTHING = "-"


def sentence(
    verdict: Verdict, rows: Sequence[Row], names: tuple[str, str], minimum: MinimumEffect
) -> str:
    """The verdict in words; `rows` are the headline."""
    of = {v: [row for row in rows if row.verdict == v] for v in Verdict}
    base, patched = names
    if verdict == Verdict.SAME:
        return (
            f"{patched} is the same as {base}: none of {len(rows)} headline metrics moved by "
            f"{100 * minimum.cycles:g} % of its cycles, or {minimum.exits:g} exits per IPI."
        )
    parts = []
    for moved in (Verdict.WORSE, Verdict.BETTER):
        if of[moved]:
            most = max(of[moved], key=lambda row: abs(row.change) / row.minimum_effect)
            more = f" and in {len(of[moved]) - 1} more" if len(of[moved]) > 1 else ""
            parts.append(f"{moved} in {most.metric} of {most.scenario} ({tell_change(most)}){more}")
    rest = [f"{len(of[v])} {v}" for v in (Verdict.SAME, Verdict.INCONCLUSIVE) if of[v]]
    if parts:
        tail = f"; of the other headline metrics {' and '.join(rest)}" if rest else ""
        return f"{patched} against {base}: {', but '.join(parts)}{tail}."
    if not of[Verdict.INCONCLUSIVE]:
        return f"Inconclusive: {patched} and {base} do not have all headline metrics."
    worst = max(of[Verdict.INCONCLUSIVE], key=lambda row: row.wanted or 0)
    units = "recordings" if worst.between_recordings is not None else "repetitions"
    return (
        f"Inconclusive: {len(of[Verdict.INCONCLUSIVE])} of {len(rows)} headline metrics could "
        f"not be decided; {worst.metric} of {worst.scenario} would take about "
        f"{worst.wanted} {units} a side ({worst.why})."
    )


def tell_change(row: Row) -> str:
    """A change and its interval: "+4.8 %, 95 % interval +4.1..+5.5"."""
    value, interval = spell_change(row)
    unit = " exits/IPI" if row.metric.startswith("exits.") else ""
    if interval == NOTHING:
        return f"{value}{unit}, no interval"
    return f"{value}{unit}, {100 * CONFIDENCE:g} % interval {interval}"


def spell_change(row: Row) -> tuple[str, str]:
    """A change, and its interval in the same unit: "+4.8 %" and "+4.1..+5.5"."""
    if row.change_low is None or row.change_high is None:
        return spell(row, row.change), NOTHING
    low, high = (
        spell(row, bound).removesuffix(" %") for bound in (row.change_low, row.change_high)
    )
    return spell(row, row.change), f"{low}..{high}"


def spell(row: Row, change: float) -> str:
    """A change of the row's metric, with its sign: a share of the base, or as it is."""
    return f"{100 * change:+.1f} %" if row.scale == Scale.RELATIVE else f"{change:+.3f}"
