# SPDX-License-Identifier: Apache-2.0
"""A comparison as OpenMetrics text, for a collector such as Prometheus' textfile one."""

from collections.abc import Iterable, Iterator, Mapping

from ipitrace.compare.model import Comparison, GateResult, GateState, Row, Side, Verdict
from ipitrace.render.openmetrics import labels

_FAMILIES = {
    "ipitrace_median": "median of the repetitions, in the unit that the label says",
    "ipitrace_median_low": "lower bound of its 95 % interval",
    "ipitrace_median_high": "upper bound of its 95 % interval",
    "ipitrace_change": "change against the base, a share of it or in the metric's unit",
    "ipitrace_change_low": "lower bound of its 95 % interval",
    "ipitrace_change_high": "upper bound of its 95 % interval",
    "ipitrace_p_corrected": "p value of the change, corrected for the number of metrics",
    "ipitrace_verdict": "1 for the verdict on the metric, 0 for the others",
}

_Point = tuple[Mapping[str, str], float]


def render_openmetrics(comparisons: Iterable[Comparison]) -> str:
    """All comparisons as one exposition, ended by # EOF."""
    found = list(comparisons)
    lines: list[str] = []
    for family, meaning in _FAMILIES.items():
        points = (p for c in found for row in c.rows for p in _points(family, c, row))
        lines += _family(family, meaning, points)
    if any(comparison.gates for comparison in found):
        lines += _family(
            "ipitrace_gate",
            "1 for the state of the gate on the metric, 0 for the others",
            (p for c in found for gate in c.gates for p in _states(c, gate)),
        )
    sides = {side.name: side for c in found for side in (c.base, c.patched)}
    lines += _family(
        "ipitrace_emulated",
        "1 where the host is emulated: cycles are not real time",
        ((_run(side), float(bool(side.emulated))) for side in sides.values()),
    )
    return "\n".join([*lines, "# EOF"]) + "\n"


def _family(name: str, meaning: str, points: Iterable[_Point]) -> Iterator[str]:
    yield f"# TYPE {name} gauge"
    yield f"# HELP {name} {meaning}"
    # A series is there once, whichever comparisons it is of: the base is in all of them.
    series = {labels(named): value for named, value in points}
    for named, value in series.items():
        yield f"{name}{named} {value!r}"


def _run(side: Side) -> dict[str, str]:
    """The labels of one side; a kernel that is not known is an empty one, which is none."""
    return {"run": side.name, "kernel": side.kernel or ""}


def _pair(comparison: Comparison) -> dict[str, str]:
    base, patched = comparison.base, comparison.patched
    return {
        "base": base.name,
        "base_kernel": base.kernel or "",
        "patched": patched.name,
        "patched_kernel": patched.kernel or "",
    }


def _states(comparison: Comparison, gate: GateResult) -> Iterator[_Point]:
    about = {
        "gate": gate.gate,
        "kind": gate.kind,
        "scenario": gate.scenario,
        "metric": gate.metric,
    }
    for state in GateState:
        yield {**_pair(comparison), **about, "state": state}, float(gate.state == state)


def _points(family: str, comparison: Comparison, row: Row) -> Iterator[_Point]:
    shared = {"scenario": row.scenario, "metric": row.metric, "unit": row.unit}
    if family.startswith("ipitrace_median"):
        for side, figures in ((comparison.base, row.base), (comparison.patched, row.patched)):
            value = getattr(figures, family.removeprefix("ipitrace_median").strip("_") or "median")
            if value is not None:
                yield {**_run(side), **shared}, float(value)
        return
    pair = {**_pair(comparison), **shared}
    if family == "ipitrace_verdict":
        for verdict in Verdict:
            yield {**pair, "verdict": verdict}, float(row.verdict == verdict)
        return
    if family.startswith("ipitrace_change"):
        pair["scale"] = row.scale
    value = getattr(row, family.removeprefix("ipitrace_"))
    if value is not None:
        yield pair, float(value)
