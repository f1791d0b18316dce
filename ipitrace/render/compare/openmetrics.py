# SPDX-License-Identifier: Apache-2.0
"""A comparison as OpenMetrics text, for node_exporter's textfile collector."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from ipitrace.compare.model import Comparison, GateResult, GateState, Row, Side, Verdict
from ipitrace.render.openmetrics import Family, Point, openmetrics_text, states

_FAMILIES: Final = {
    "ipitrace_median": "median of the repetitions, in the unit of the label",
    "ipitrace_median_low": "lower bound of the 95 % interval of the median",
    "ipitrace_median_high": "upper bound of the 95 % interval of the median",
    "ipitrace_change": "change from the base, as a share of the base or in the unit of the metric",
    "ipitrace_change_low": "lower bound of the 95 % interval of the change",
    "ipitrace_change_high": "upper bound of the 95 % interval of the change",
    "ipitrace_p_corrected": "p value of the change, corrected for the number of metrics",
    "ipitrace_verdict": "1 for the verdict on the metric, 0 for the others",
}


def render_openmetrics(comparisons: Iterable[Comparison]) -> str:
    """All comparisons as one exposition, ended by # EOF."""
    found = list(comparisons)
    families = [Family(name, meaning, _points(name, found)) for name, meaning in _FAMILIES.items()]
    if any(comparison.gates for comparison in found):
        gates = (p for c in found for gate in c.gates for p in _states(c, gate))
        meaning = "1 for the state of the gate on the metric, 0 for the others"
        families.append(Family("ipitrace_gate", meaning, gates))
    sides = {side.name: side for c in found for side in (c.base, c.patched)}
    emulated = [(_run(side), float(bool(side.emulated))) for side in sides.values()]
    meaning = "1 where the host is emulated: cycles are not real time"
    return openmetrics_text([*families, Family("ipitrace_emulated", meaning, emulated)])


def _run(side: Side) -> dict[str, str]:
    """The labels of one side; an unknown kernel is an empty label, which counts as none."""
    return {"run": side.name, "kernel": side.kernel or ""}


def _pair(comparison: Comparison) -> dict[str, str]:
    base, patched = comparison.base, comparison.patched
    return {
        "base": base.name,
        "base_kernel": base.kernel or "",
        "patched": patched.name,
        "patched_kernel": patched.kernel or "",
    }


def _states(comparison: Comparison, gate: GateResult) -> Iterator[Point]:
    about = {
        "gate": gate.gate,
        "kind": gate.kind,
        "scenario": gate.scenario,
        "metric": gate.metric,
    }
    yield from states({**_pair(comparison), **about}, "state", GateState, gate.state)


def _points(family: str, comparisons: Sequence[Comparison]) -> Iterator[Point]:
    for comparison in comparisons:
        for row in comparison.rows:
            yield from _points_of(family, comparison, row)


def _points_of(family: str, comparison: Comparison, row: Row) -> Iterator[Point]:
    shared = {"scenario": row.scenario, "metric": row.metric, "unit": row.unit}
    if family.startswith("ipitrace_median"):
        for side, figures in ((comparison.base, row.base), (comparison.patched, row.patched)):
            value = getattr(figures, family.removeprefix("ipitrace_median").strip("_") or "median")
            if value is not None:
                yield {**_run(side), **shared}, float(value)
        return
    pair = {**_pair(comparison), **shared}
    if family == "ipitrace_verdict":
        yield from states(pair, "verdict", Verdict, row.verdict)
        return
    if family.startswith("ipitrace_change"):
        pair["scale"] = row.scale
    value = getattr(row, family.removeprefix("ipitrace_"))
    if value is not None:
        yield pair, float(value)
