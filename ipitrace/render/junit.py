# SPDX-License-Identifier: Apache-2.0
"""JUnit XML: the one writer of every JUnit document.

Collectors keep a test's history by the names of the suite, the class and the case. These names
must therefore contain no path of a recording.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal
from xml.etree import ElementTree as ET  # only written here, never parsed

from ipitrace.base.foreign import plain_values

Outcome = Literal["passed", "failure", "skipped"]


@dataclass(frozen=True)
class Case:
    """One test case.

    Attributes:
        message: why it failed or was skipped.
    """

    name: str
    outcome: Outcome = "passed"
    message: str = ""


@dataclass(frozen=True)
class Suite:
    """Test cases of one kind.

    Attributes:
        name: of the suite, and of the class of all its cases.
        started_at: ISO 8601; the offset from UTC is left out. "" where no time is known.
        about: lines that say what the suite tested.
    """

    name: str
    cases: Sequence[Case]
    started_at: str
    about: Sequence[str]


def junit_text(name: str, suites: Iterable[Suite]) -> str:
    """The suites as one document called `name`."""
    root = ET.Element("testsuites", name=name)
    total = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
    for suite in suites:
        counts = _add_suite(root, plain_values(suite))
        total = {key: total[key] + n for key, n in counts.items()}
    # Jenkins' schema has no `skipped` of all suites together.
    root.attrib.update({key: str(n) for key, n in total.items() if key != "skipped"})
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, "unicode") + "\n"


def _add_suite(root: ET.Element, suite: Suite) -> dict[str, int]:
    counts = {
        "tests": len(suite.cases),
        "failures": sum(case.outcome == "failure" for case in suite.cases),
        "errors": 0,
        "skipped": sum(case.outcome == "skipped" for case in suite.cases),
    }
    element = ET.SubElement(
        root,
        "testsuite",
        {
            "name": suite.name,
            **{key: str(n) for key, n in counts.items()},
            "time": "0",
        },
    )
    if suite.started_at:
        element.set("timestamp", suite.started_at.partition("+")[0])
    for case in suite.cases:
        _add_case(element, case, suite.name)
    ET.SubElement(element, "system-out").text = "\n".join(suite.about)
    return counts


def _add_case(suite: ET.Element, case: Case, classname: str) -> None:
    element = ET.SubElement(suite, "testcase", name=case.name, classname=classname, time="0")
    if case.outcome == "passed":
        return
    why = ET.SubElement(element, case.outcome, message=case.message)
    if case.outcome == "failure":
        why.set("type", "ipitrace")
        why.text = case.message
