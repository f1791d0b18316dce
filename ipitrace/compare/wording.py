# SPDX-License-Identifier: Apache-2.0
"""A comparison in words."""

from collections.abc import Iterator, Mapping, Sequence

from ipitrace.compare.model import (
    FingerprintDifference,
    GateResult,
    GateState,
    MinimumEffect,
    Row,
    Verdict,
)
from ipitrace.compare.statistics import CONFIDENCE
from ipitrace.words.metrics import Scale

NOTHING = "-"
_EMPTY = "empty"
_ABSENT = "absent"  # a key that one side does not have
_NO_VALUE = "none"
_MANY = 1000
_NAMED = 3  # gates in a sentence
_NO_DECIMALS = 10  # times the base


def sentence(
    verdict: Verdict, rows: Sequence[Row], names: tuple[str, str], minimum: MinimumEffect
) -> str:
    """The verdict in words; `rows` are those of the headline metrics."""
    of = {v: [row for row in rows if row.verdict == v] for v in Verdict}
    base, patched = names
    if verdict == Verdict.SAME:
        return (
            f"{patched} is the same as {base}: none of {len(rows)} headline metrics changed by "
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
        return f"{patched} compared with {base}: {', but '.join(parts)}{tail}."
    if not of[Verdict.INCONCLUSIVE]:
        return f"Inconclusive: {patched} or {base} lacks some headline metrics."
    worst = max(of[Verdict.INCONCLUSIVE], key=lambda row: row.wanted or 0)
    units = "recordings" if worst.between_recordings is not None else "repetitions"
    return (
        f"Inconclusive: {len(of[Verdict.INCONCLUSIVE])} of {len(rows)} headline metrics could "
        f"not be decided; {worst.metric} of {worst.scenario} needs "
        f"{how_many(worst.wanted)} {units} on each side ({worst.why})."
    )


def how_many(wanted: int | None) -> str:
    """An estimated number of repetitions or recordings."""
    return f"more than {_MANY}" if (wanted or 0) > _MANY else f"about {wanted}"


def gates_in_words(gates: Sequence[GateResult]) -> str:
    """The number of broken (with their names), open and held gates; empty if there are none."""
    of = {state: [g for g in gates if g.state == state] for state in GateState}
    broken = of[GateState.BROKEN]
    named = [f"{g.metric} of {g.scenario}" for g in broken[:_NAMED]]
    which = ", ".join([*named, "..."] if len(broken) > len(named) else named)
    counts = [
        f"{len(of[state])} {state}" + (f" ({which})" if state == GateState.BROKEN else "")
        for state in (GateState.BROKEN, GateState.OPEN, GateState.HELD)
        if of[state]
    ]
    return f"Gates: {', '.join(counts)}." if counts else ""


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
    """A change of the row's metric with its sign: in percent of the base, or in its unit."""
    if row.scale == Scale.RELATIVE:
        return f"{100 * change:+.{0 if change >= _NO_DECIMALS else 1}f} %"
    return f"{change:+.3f}"


def tell_difference(difference: FingerprintDifference) -> Iterator[tuple[str, str, str]]:
    """Each item that differs, its value in the base and its value in the patched run.

    Each key of a mapping is an item of its own.
    """
    base, patched = difference.base, difference.patched
    if isinstance(base, Mapping) and isinstance(patched, Mapping):
        for key in {**base, **patched}:
            old, new = (
                _ABSENT if side.get(key) is None else _spell_value(side[key])
                for side in (base, patched)
            )
            yield str(key), old, new
    else:
        yield difference.key, _spell_value(base), _spell_value(patched)


def _spell_value(value: object) -> str:
    """A value of run.json in words; never as Python spells it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return _NO_VALUE
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_spell_value(v)}" for k, v in value.items()) or _EMPTY
    if isinstance(value, list | tuple):
        return ", ".join(map(_spell_value, value)) or _EMPTY
    return str(value) or _EMPTY


def spell_p(p: float) -> str:
    """A p value as text; it is never 0."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"  # noqa: PLR2004 - the printed limit
