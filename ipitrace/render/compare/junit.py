# SPDX-License-Identifier: Apache-2.0
"""A comparison as JUnit XML: a suite for each scenario, a test case for each metric.

Collectors keep a test's history by the names of suite, class and case. So these say nothing of
where recordings lie; what was compared is in the suite's output.
"""

from collections.abc import Iterable, Sequence
from xml.etree import ElementTree as ET  # only written here, never parsed

from ipitrace.base.foreign import plain_values
from ipitrace.compare.model import Comparison, GateKind, GateResult, GateState, Row, Verdict
from ipitrace.compare.wording import tell_change


def render_junit(comparisons: Iterable[Comparison], *, strict: bool) -> str:
    """All comparisons as one document.

    With gates each is a test case, and only a broken one fails; without any, each headline
    metric is one, and a worse one fails. What could not be decided is skipped, or fails
    when `strict`.
    """
    root = ET.Element("testsuites", name="ipitrace compare")
    total = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
    for i, comparison in enumerate(map(plain_values, comparisons), start=1):
        suites = "ipitrace" if i == 1 else f"ipitrace.{i}"
        cases: dict[str, list[ET.Element]] = {}
        for scenario, case in _cases(comparison, suites, strict=strict):
            cases.setdefault(scenario, []).append(case)
        for scenario, members in cases.items():
            counts = {
                "tests": len(members),
                "failures": _count(members, "failure"),
                "errors": 0,
                "skipped": _count(members, "skipped"),
            }
            suite = ET.SubElement(
                root,
                "testsuite",
                {
                    "name": f"{suites}.{scenario}",
                    **{key: str(n) for key, n in counts.items()},
                    "time": "0",
                    "timestamp": comparison.patched.started_at.partition("+")[0],
                },
            )
            suite.extend(members)
            about = f"{comparison.patched.name} against {comparison.base.name}"
            ET.SubElement(suite, "system-out").text = f"{about}\n{comparison.sentence}"
            total = {key: total[key] + n for key, n in counts.items()}
    # Jenkins' schema knows no `skipped` of all suites together
    root.attrib.update({key: str(n) for key, n in total.items() if key != "skipped"})
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, "unicode") + "\n"


def _cases(
    comparison: Comparison, suites: str, *, strict: bool
) -> Iterable[tuple[str, ET.Element]]:
    rows = {(row.scenario, row.metric): row for row in comparison.rows}
    if comparison.gates:
        for gate in comparison.gates:
            yield gate.scenario, _gate_case(gate, rows[gate.scenario, gate.metric], suites, strict)
    else:
        for row in comparison.headline:
            yield row.scenario, _row_case(row, suites, strict)


def _gate_case(gate: GateResult, row: Row, suites: str, strict: bool) -> ET.Element:  # noqa: FBT001
    kind = "" if gate.kind == GateKind.FAIL_ON else f"{gate.kind} "
    case = _case(f"{gate.metric} ({kind}{gate.gate})", gate.scenario, suites)
    message = f"{gate.metric} {tell_change(row)}: {gate.why}"
    if gate.state == GateState.BROKEN:
        _add(case, "failure", message)
    elif gate.state == GateState.OPEN:
        _add(case, "failure" if strict else "skipped", message)
    return case


def _row_case(row: Row, suites: str, strict: bool) -> ET.Element:  # noqa: FBT001
    case = _case(row.metric, row.scenario, suites)
    if row.verdict == Verdict.WORSE:
        _add(case, "failure", f"{row.metric} {tell_change(row)}")
    elif row.verdict == Verdict.INCONCLUSIVE:
        kind = "failure" if strict else "skipped"
        _add(
            case,
            kind,
            f"{row.metric} {tell_change(row)}: {row.why}",
        )
    return case


def _case(name: str, scenario: str, suites: str) -> ET.Element:
    return ET.Element("testcase", name=name, classname=f"{suites}.{scenario}", time="0")


def _add(case: ET.Element, kind: str, message: str) -> None:
    element = ET.SubElement(case, kind, message=message)
    if kind == "failure":
        element.set("type", "ipitrace")
        element.text = message


def _count(cases: Sequence[ET.Element], kind: str) -> int:
    return sum(case.find(kind) is not None for case in cases)
