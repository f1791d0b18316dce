# SPDX-License-Identifier: Apache-2.0
"""Every format of every command: one registry, one meaning."""

import csv
import io
import itertools
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import click
import pytest
import xmlschema
from click.testing import CliRunner
from hostile import SAMPLES, assert_harmless, hostile_text, poisoned
from hypothesis import example, given
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from runs import made_run, measured_row, unsupported_row
from test_hostile_text import EVIDENCE, EXAMINATION, SPARED, VM, a_run, kinds, points, slow

from ipitrace.base.console import unstyled
from ipitrace.base.errors import UsageError
from ipitrace.commands.group import ipitrace_group
from ipitrace.compare import Settings, compare
from ipitrace.compare.fingerprint import ITEMS
from ipitrace.compare.model import Comparison, FingerprintDifference
from ipitrace.compare.versus import parse_pair
from ipitrace.compare.wording import tell_difference
from ipitrace.doctor.model import Check, Examination
from ipitrace.recording.reader import read_run, read_run_text
from ipitrace.recording.result import RunResult
from ipitrace.render.compare.tables import render_comparison
from ipitrace.render.formats import EXAMINATION as DOCTOR
from ipitrace.render.formats import FORMATS, OFFERS, RUN, SUBJECTS, VMS, Subject
from ipitrace.render.scenarios import Offer
from ipitrace.vm import Discovery
from ipitrace.words.scenarios import SCENARIOS

RECORDINGS = Path(__file__).parents[2] / "data/recordings"
DOCS = Path(__file__).parents[3] / "docs"
NAMES = sorted(path.parent.name for path in RECORDINGS.glob("*/run.json"))
PYTHON = ("{'", "': ", "['", "', '")
"""How Python spells what no person should have to read."""


def command_of(name: str) -> click.Command:
    command = ipitrace_group.get_command(click.Context(ipitrace_group), name)
    assert command is not None
    return command


def invoke(*words: object) -> Any:
    name, *rest = map(str, words)
    return CliRunner().invoke(command_of(name), rest, standalone_mode=False)


COMMANDS = [
    (command, subject) for subject in SUBJECTS for command in subject.commands if " " not in command
]


def test_every_renderer_is_there() -> None:
    for subject in SUBJECTS:
        assert subject.formats == tuple(name for name in FORMATS if name in subject.renderers)
        assert subject.renderers.keys() <= FORMATS.keys()
        for renderer in subject.renderers.values():
            assert callable(renderer.load())


@pytest.mark.parametrize(("name", "subject"), COMMANDS, ids=lambda value: str(value)[:9])
def test_the_help_lists_the_formats(name: str, subject: Subject) -> None:
    help_text = " ".join(CliRunner().invoke(command_of(name), ["--help"]).stdout.split())
    assert f"--format [{'|'.join(subject.formats)}]" in help_text
    for known in subject.formats:
        assert f"{known}: {FORMATS[known].about}"[:30] in help_text


def test_the_documentation_lists_the_formats_of_every_command() -> None:
    section = (DOCS / "output.md").read_text().partition("\n## Formats\n")[2].partition("\n## ")[0]
    tables = [
        [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
        for block in section.split("\n\n")
        if block.startswith("|")
    ]
    formats, commands = tables
    assert {row[0].strip("`"): (row[1], row[2]) for row in formats[2:]} == {
        known.name: (known.about, known.written.replace("|", "\\|")) for known in FORMATS.values()
    }
    assert commands[0] == ["command", *(f"`{name}`" for name in FORMATS)]
    assert {row[0]: row[1:] for row in commands[2:]} == {
        ", ".join(f"`{command}`" for command in subject.commands): [
            "yes" if name in subject.formats else "" for name in FORMATS
        ]
        for subject in SUBJECTS
    }


@pytest.mark.parametrize(
    ("words", "formats"),
    [
        (("list", "--format", "junit"), VMS.formats),
        (("scenarios", "--format", "openmetrics"), OFFERS.formats),
        (("watch", "--format", "csv"), ("table", "json")),
        (("report", "--example", "--format", "xml"), RUN.formats),
        (("report", "--example", "--ipi", 1, "--format", "csv"), ("table",)),
        (("run", "--dry-run", "--format", "junit"), ("table", "json")),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_a_format_that_is_not_there_is_refused_with_those_that_are(
    words: tuple[object, ...], formats: tuple[str, ...]
) -> None:
    error = invoke(*words).exception
    assert isinstance(error, UsageError | click.UsageError), error
    said = f"{error.message} {getattr(error, 'hint', '')}"
    assert all(name in said for name in formats)
    assert error.exit_code == 2


def test_json_has_a_short_form_that_contradicts_no_other_format(tmp_path: Path) -> None:
    for words in (("report", RECORDINGS / "micro-pvm"), ("scenarios",)):
        short, long, both = (
            invoke(*words, *more)
            for more in (("--json",), ("--format", "json"), ("--json", "--format", "json"))
        )
        assert short.stdout == long.stdout == both.stdout
        json.loads(short.stdout)
    for other in ("table", "csv"):
        refused = invoke("report", RECORDINGS / "micro-pvm", "--json", "--format", other)
        assert isinstance(refused.exception, UsageError)
    refused = invoke("run", "-o", tmp_path / "r", "--json", "--format", "csv")
    assert isinstance(refused.exception, UsageError)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_report_in_every_format(name: str, jenkins_schema: xmlschema.XMLSchema) -> None:
    run = read_run(RECORDINGS / name)
    said = {
        style: invoke("report", RECORDINGS / name, "--format", style).stdout
        for style in RUN.formats
    }
    assert said["json"] == read_run_text(RECORDINGS / name)
    measured = [row for row in run.scenarios if row.status == "measured"]
    table = list(csv.DictReader(io.StringIO(said["csv"])))
    assert {row["scenario"] for row in table} == {row.name for row in run.scenarios}
    found = {(row["scenario"], row["metric"]): row for row in table}
    points = {
        (s.name, *sorted(s.labels.items())): s.value
        for family in text_string_to_metric_families(said["openmetrics"])
        for s in family.samples
    }
    for row in measured:
        assert row.send_cycles is not None
        assert float(found[row.name, "send.p50"]["value"]) == row.send_cycles.p50
        assert found[row.name, "send.p50"]["unit"] == "cycles"
        labels = {"scenario": row.name, "metric": "send", "percentile": "p50"}
        key = ("ipitrace_run_cycles", *sorted(labels.items()))
        assert points[key] == row.send_cycles.p50
    jenkins_schema.validate(said["junit"])
    root = ET.fromstring(said["junit"])  # noqa: S314 - our own
    assert [case.get("name") for case in root.iter("testcase")] == [
        row.name for row in run.scenarios
    ]
    assert {s for _name, s in root.attrib.items()} >= {str(len(run.scenarios))}
    assert bool(run.emulator) == (points["ipitrace_run_emulated",] == 1.0)
    for style in ("table", "markdown"):
        for row in measured:
            assert row.name in said[style]


def test_csv_is_in_long_form() -> None:
    run = made_run(scenarios=(measured_row(), unsupported_row("ring")), untrustworthy=("a doubt",))
    rows = list(csv.DictReader(io.StringIO(RUN.render("csv", run))))
    values = {row["metric"]: (row["value"], row["unit"]) for row in rows}
    assert values["deliver.p50"] == ("50", "cycles")
    assert values["sent"] == ("3", "sends")
    assert values["exits.sender.MSR_WRITE"] == ("1", "exits/IPI")
    assert {row["problem"] for row in rows if row["metric"]} == {"a doubt"}
    (left_out,) = (row for row in rows if row["status"] == "unsupported")
    assert (left_out["scenario"], left_out["metric"], left_out["value"]) == ("ring", "", "")
    assert "too small" in left_out["problem"]


def test_test_cases_of_a_run(jenkins_schema: xmlschema.XMLSchema) -> None:
    rows = (measured_row(), unsupported_row("ring"))

    def outcomes(**changes: object) -> dict[str | None, str]:
        text = RUN.render("junit", made_run(scenarios=rows, **changes))
        jenkins_schema.validate(text)
        root = ET.fromstring(text)  # noqa: S314 - our own
        return {
            case.get("name"): next((child.tag for child in case), "passed")
            for case in root.iter("testcase")
        }

    assert outcomes() == {"unicast-running": "passed", "ring": "skipped"}
    assert outcomes(untrustworthy=("a doubt",))["unicast-running"] == "failure"
    partial = outcomes(complete=False, failure="Interrupted.")
    assert partial == {"unicast-running": "passed", "ring": "skipped", "complete": "failure"}


def test_the_doctor_in_every_format(jenkins_schema: xmlschema.XMLSchema) -> None:
    checks = (*EXAMINATION.checks, Check("tsc", "missing", "no TSC"), Check("x", "unknown", "?"))
    examination = Examination(checks, VM)
    said = {style: DOCTOR.render(style, examination) for style in DOCTOR.formats}
    assert json.loads(said["json"]) == json.loads(json.dumps(examination.to_dict()))
    rows = list(csv.reader(io.StringIO(said["csv"])))
    assert rows[2] == ["kvm", "warn", "so and so", "do that"]
    jenkins_schema.validate(said["junit"])
    root = ET.fromstring(said["junit"])  # noqa: S314 - our own
    outcomes = [next((c.tag for c in case), "passed") for case in root.iter("testcase")]
    assert outcomes == ["passed", "skipped", "failure", "skipped"]
    values = points(said["openmetrics"])
    assert sum(value for name, value, _labels in values if name == "ipitrace_doctor_check") == 4
    assert ("ipitrace_doctor_can_run", 0.0, set()) in values
    for style in ("table", "markdown"):
        assert "'ipitrace run' cannot trace here: tsc." in said[style]


def test_the_list_in_every_format() -> None:
    found = Discovery((VM, replace(VM, name="db", aliases=("db", "pid:9"), pid=9)), 3, None)
    said = {style: VMS.render(style, found) for style in VMS.formats}
    rows = list(csv.DictReader(io.StringIO(said["csv"])))
    assert [(row["name"], row["pid"], row["vcpus"]) for row in rows] == [
        ("web", "700", "2"),
        ("db", "9", "2"),
    ]
    assert [row["threads"] for row in rows] == ["801 -", "801 -"]
    assert "| web" in said["markdown"]
    assert len(json.loads(said["json"])["vms"]) == 2
    empty = {style: VMS.render(style, Discovery((), 0, None)) for style in VMS.formats}
    assert len(empty["csv"].splitlines()) == 1
    assert "No KVM VM" in empty["markdown"]


def test_the_scenarios_in_every_format() -> None:
    offers = [Offer(s, "not here" if s.name == "ring" else None) for s in SCENARIOS]
    said = {style: OFFERS.render(style, offers) for style in OFFERS.formats}
    found = json.loads(said["json"])["scenarios"]
    assert [(one["name"], one["can_run"]) for one in found] == [
        (s.name, s.name != "ring") for s in SCENARIOS
    ]
    rows = {row["scenario"]: row for row in csv.DictReader(io.StringIO(said["csv"]))}
    assert (rows["ring"]["runs"], rows["ring"]["why_not"]) == ("no", "not here")
    assert rows["self"]["runs"] == "default"


POISONED: dict[str, tuple[Subject, Callable[[str], Any]]] = {
    "run": (RUN, lambda text: poisoned(a_run(), text, spared=SPARED)),
    "doctor": (DOCTOR, lambda text: poisoned(EXAMINATION, text, spared=SPARED)),
    "list": (VMS, lambda text: Discovery((poisoned(VM, text, spared=EVIDENCE),), 3, text)),
    "scenarios": (OFFERS, lambda text: [Offer(SCENARIOS[0], f"why{text}")]),
}


@pytest.mark.parametrize("name", POISONED)
@slow
@given(text=hostile_text)
@example(text="".join(SAMPLES[:9]))
@example(text="".join(SAMPLES[13:19]))
def test_hostile_text_in_every_format(name: str, text: str) -> None:
    subject, make = POISONED[name]
    bad, good = make(text), make("")
    for style in subject.formats:
        if style == "json":  # console.say_json() escapes it
            continue
        written, usual = (subject.render(style, data) for data in (bad, good))
        assert_harmless(unstyled(written))
        if style == "markdown":
            assert kinds(written) == kinds(usual)
        elif style == "openmetrics":
            assert points(written) == points(usual)
        elif style == "junit":
            tags = [
                [element.tag for element in ET.fromstring(xml.encode()).iter()]  # noqa: S314
                for xml in (written, usual)
            ]
            assert tags[0] == tags[1]
        elif style == "csv":
            for row in csv.reader(io.StringIO(written)):
                for cell in row:
                    if re.match(r"\s*[-=+@\t\r\uff1d\uff0b\uff0d\uff20]", cell):
                        float(cell)


def all_comparisons() -> list[Comparison]:
    """Each shipped recording with each other, whatever differs."""
    runs = {name: read_run(RECORDINGS / name) for name in NAMES}
    conditions = (
        *("targets", "pace_cycles", "warmup", "send_method", "target_state", "pattern"),
        *("sends_per_repetition", "exits.source", "traced"),
    )
    allow = frozenset(
        {item.key for item in ITEMS}
        | {"incomplete", "untrustworthy"}
        | {f"unicast-running.{key}" for key in conditions}
    )
    found = [
        compare(
            [(one, runs[one])],
            [(other, runs[other])],
            (one, other),
            Settings(allow=allow, scenarios=("unicast-running",)),
        )
        for one, other in itertools.permutations(NAMES, 2)
        if has(runs[one]) and has(runs[other])
    ]
    pairs = (parse_pair("broadcast=broadcast-passthrough"),)
    sides = [[(name, runs[name])] for name in ("passthrough-off", "passthrough-on")]
    names = ("passthrough-off", "passthrough-on")
    return [*found, compare(sides[0], sides[1], names, Settings(pairs=pairs))]


def has(run: RunResult) -> bool:
    return any(row.name == "unicast-running" and row.status == "measured" for row in run.scenarios)


def test_no_person_reads_a_value_as_python_spells_it() -> None:
    texts = [
        RUN.render(style, read_run(RECORDINGS / name), verbose=True)
        for name in NAMES
        for style in ("table", "markdown")
    ]
    comparisons = all_comparisons()
    differences = [d for c in comparisons for d in c.differences]
    assert any(isinstance(d.base, dict) for d in differences)
    for difference in differences:
        for key, old, new in tell_difference(difference):
            assert old != new, key
    texts += [
        render_comparison(comparison, every=True, markdown=markdown)
        for comparison in comparisons
        for markdown in (False, True)
    ]
    for text in texts:
        assert [spelled for spelled in PYTHON if spelled in text.replace("\\", "")] == []


@pytest.mark.parametrize(
    ("base", "patched", "lines"),
    [
        ("6.1", "6.2", ["differs: item: 6.1 -> 6.2 (may differ)"]),
        (None, False, ["differs: item: none -> no (may differ)"]),
        ([0, 1], [], ["differs: item: 0, 1 -> empty (may differ)"]),
        (
            {"kvm.a": "N", "kvm.b": None},
            {"kvm.a": "Y", "kvm.b": "1"},
            ["differs: item (may differ):", "  kvm.a: N -> Y", "  kvm.b: absent -> 1"],
        ),
    ],
)
def test_a_difference_is_told_in_lines(base: object, patched: object, lines: list[str]) -> None:
    comparison = replace(
        all_comparisons()[-1],
        differences=(FingerprintDifference("item", base, patched, "may differ"),),
    )
    shown = render_comparison(comparison, every=True).splitlines()
    at = shown.index(lines[0])
    assert shown[at : at + len(lines)] == lines
    page = render_comparison(comparison, every=True, markdown=True)
    for line in lines[1:]:
        assert f"\n- {line.strip()}" in page
