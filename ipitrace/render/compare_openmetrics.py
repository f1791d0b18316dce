# SPDX-License-Identifier: Apache-2.0
"""A comparison as OpenMetrics text, for a collector such as Prometheus' textfile one."""

from collections.abc import Iterable, Iterator, Mapping

from ipitrace.compare.model import Comparison, Row, Verdict
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


def render_openmetrics(comparisons: Iterable[Comparison]) -> str:
    """All comparisons as one exposition, ended by # EOF."""
    found = list(comparisons)
    lines = []
    for family, meaning in _FAMILIES.items():
        lines += [f"# TYPE {family} gauge", f"# HELP {family} {meaning}"]
        for comparison in found:
            for row in comparison.rows:
                lines += [
                    f"{family}{labels(named)} {value!r}"
                    for named, value in _points(family, comparison, row)
                ]
    lines += [
        "# TYPE ipitrace_emulated gauge",
        "# HELP ipitrace_emulated 1 where the host is emulated: cycles are not real time",
    ]
    sides = {side.name: side for c in found for side in (c.base, c.patched)}
    lines += [
        f"ipitrace_emulated{labels({'run': side.name})} {float(bool(side.emulated))!r}"
        for side in sides.values()
    ]
    return "\n".join([*lines, "# EOF"]) + "\n"


def _points(
    family: str, comparison: Comparison, row: Row
) -> Iterator[tuple[Mapping[str, str], float]]:
    shared = {"scenario": row.scenario, "metric": row.metric, "unit": row.unit}
    if family.startswith("ipitrace_median"):
        for run, figures in (
            (comparison.base.name, row.base),
            (comparison.patched.name, row.patched),
        ):
            value = getattr(figures, family.removeprefix("ipitrace_median").strip("_") or "median")
            if value is not None:
                yield {"run": run, **shared}, float(value)
        return
    pair = {"base": comparison.base.name, "patched": comparison.patched.name, **shared}
    if family == "ipitrace_verdict":
        for verdict in Verdict:
            yield {**pair, "verdict": verdict}, float(row.verdict == verdict)
        return
    if family.startswith("ipitrace_change"):
        pair["scale"] = row.scale
    value = getattr(row, family.removeprefix("ipitrace_"))
    if value is not None:
        yield pair, float(value)
