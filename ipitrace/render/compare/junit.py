# SPDX-License-Identifier: Apache-2.0
"""A comparison as JUnit XML: a suite for each scenario, a test case for each metric.

The names of suites and cases contain no path of a recording, see render/junit.py. The output of
a suite says which recordings were compared.
"""

from collections.abc import Iterable, Iterator

from ipitrace.base.foreign import plain_values
from ipitrace.compare.model import Comparison, GateKind, GateResult, GateState, Row, Verdict
from ipitrace.compare.wording import tell_change
from ipitrace.render.junit import Case, Outcome, Suite, junit_text


def render_junit(comparisons: Iterable[Comparison], *, strict: bool) -> str:
    """All comparisons as one document.

    With gates, each gate is a test case, and only a broken one fails. Without gates, each
    headline metric is a test case, and a worse one fails. An undecided case is skipped, or fails
    when `strict`.
    """
    suites = (
        suite
        for i, comparison in enumerate(map(plain_values, comparisons), start=1)
        for suite in _suites(comparison, "ipitrace" if i == 1 else f"ipitrace.{i}", strict=strict)
    )
    return junit_text("ipitrace compare", suites)


def _suites(comparison: Comparison, prefix: str, *, strict: bool) -> Iterator[Suite]:
    cases: dict[str, list[Case]] = {}
    undecided: Outcome = "failure" if strict else "skipped"
    if comparison.gates:
        rows = {(row.scenario, row.metric): row for row in comparison.rows}
        for gate in comparison.gates:
            row = rows[gate.scenario, gate.metric]
            cases.setdefault(gate.scenario, []).append(_gate_case(gate, row, undecided))
    else:
        for row in comparison.headline:
            cases.setdefault(row.scenario, []).append(_row_case(row, undecided))
    about = (f"{comparison.patched.name} against {comparison.base.name}", comparison.sentence)
    for scenario, members in cases.items():
        yield Suite(f"{prefix}.{scenario}", members, comparison.patched.started_at, about)


def _gate_case(gate: GateResult, row: Row, undecided: Outcome) -> Case:
    kind = "" if gate.kind == GateKind.FAIL_ON else f"{gate.kind} "
    name = f"{gate.metric} ({kind}{gate.gate})"
    message = f"{gate.metric} {tell_change(row)}: {gate.why}"
    outcomes: dict[GateState, Outcome] = {
        GateState.BROKEN: "failure",
        GateState.OPEN: undecided,
    }
    return Case(name, outcomes.get(gate.state, "passed"), message)


def _row_case(row: Row, undecided: Outcome) -> Case:
    message = f"{row.metric} {tell_change(row)}"
    if row.verdict == Verdict.WORSE:
        return Case(row.metric, "failure", message)
    if row.verdict == Verdict.INCONCLUSIVE:
        return Case(row.metric, undecided, f"{message}: {row.why}")
    return Case(row.metric)
