# SPDX-License-Identifier: Apache-2.0
"""`ipitrace compare` in every output format."""

import csv
import io
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import xmlschema
from compared import code_of, host, invoke, record, schema
from comparisons import run_of, steady
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from ipitrace.base.console import PIPE_WIDTH
from ipitrace.base.errors import ExitCode, HostError, UsageError
from ipitrace.recording.row import ExitsPerIpi
from ipitrace.render.formats import COMPARISON

RECORDINGS = Path(__file__).parents[2] / "data/recordings"
DOCS = Path(__file__).parents[3] / "docs"


def test_every_format_tells_what_was_required(places: Mapping[str, Path]) -> None:
    said = {
        style: invoke(
            *(places, "base", "slow", "--require", "deliver:-30%", "--format", style)
        ).stdout
        for style in COMPARISON.formats
    }
    (found,) = json.loads(said["json"])["comparisons"]
    (gate,) = found["gates"]
    assert (gate["gate"], gate["kind"], gate["state"]) == ("deliver:-30%", "require", "broken")
    root = ET.fromstring(said["junit"])  # noqa: S314 - our own
    (case,) = root.iter("testcase")
    assert case.get("name") == "deliver.p50 (require deliver:-30%)"
    (failure,) = case.iter("failure")
    assert "the whole interval of the change is short of the limit" in failure.get("message", "")
    for style in ("table", "markdown"):
        assert "Gates: 1 broken (deliver.p50 of unicast-running)." in said[style]
    rows = list(csv.DictReader(io.StringIO(said["csv"])))
    assert [row["gates"] for row in rows] == ["", "1 broken (deliver.p50 of unicast-running)."]
    states = {
        sample.labels["state"]: sample.value
        for family in text_string_to_metric_families(said["openmetrics"])
        for sample in family.samples
        if family.name == "ipitrace_gate" and sample.labels["kind"] == "require"
    }
    assert states == {"broken": 1.0, "held": 0.0, "open": 0.0}


def test_a_table_shows_what_moved_and_with_all_everything(places: Mapping[str, Path]) -> None:
    brief, whole = (invoke(places, "base", "same", *more).stdout for more in ((), ("--all",)))
    assert "deliver.p99.9" not in brief
    assert "more metrics without a significant change" in brief
    for metric in ("deliver.p99.9", "\nexits.sender.MSR_WRITE", "path.msr-exit"):
        assert metric in whole


def test_markdown_is_a_table_and_goes_to_the_jobs_page(
    places: Mapping[str, Path], tmp_path: Path
) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n")
    env = {"GITHUB_STEP_SUMMARY": str(page)}
    done = invoke(places, "base", "slow", "--github-summary", env=env)
    text = page.read_text()
    assert text.startswith("before\n### ")
    assert "| scenario" in text
    assert text == "before\n" + invoke(places, "base", "slow", "--format", "markdown").stdout
    assert "| scenario" not in done.stdout
    before = page.read_text()
    invoke(places, "base", "slow", env=env)
    assert page.read_text() == before, "only when asked"
    missing = invoke(places, "base", "slow", "--github-summary", env={"GITHUB_STEP_SUMMARY": ""})
    assert isinstance(missing.exception, UsageError)


@pytest.mark.parametrize(
    "more",
    [(), ("--anchors",), ("--fail-on", "deliver:+5%", "--require", "send:-5%")],
)
def test_json_follows_its_schema(places: Mapping[str, Path], more: tuple[str, ...]) -> None:
    for other in ("same", "slow", "fast", "few"):
        document = json.loads(invoke(places, "base", other, *more, "--format", "json").stdout)
        schema().validate(document)
        assert ("anchors" in document) == ("--anchors" in more)
    two = json.loads(invoke(places, "base", "same", "slow", "--format", "json").stdout)
    assert [c["verdict"] for c in two["comparisons"]] == ["same", "worse"]


def test_the_junit_schema_refuses_what_is_none(jenkins_schema: xmlschema.XMLSchema) -> None:
    head = '<testsuites><testsuite name="x" tests="1" failures="0" errors="0">'
    suite = head + "{}</testsuite></testsuites>"
    jenkins_schema.validate(suite.format('<testcase name="y"/>'))
    for wrong in ("<testcase/>", '<testcase name="y"><broken/></testcase>', "<case/>"):
        assert not jenkins_schema.is_valid(suite.format(wrong))


@pytest.mark.parametrize(
    ("words", "failures", "skipped"),
    [
        (("base", "same"), 0, 0),
        (("base", "slow"), 3, 0),
        (("few", "few"), 0, 5),
        (("few", "few", "--strict"), 5, 0),
        (("base", "same", "slow"), 3, 0),
        (("base", "slow", "--fail-on", "deliver:+5%", "--fail-on", "exits:+1"), 1, 0),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else str(value),
)
def test_junit_is_valid_and_counts_right(
    places: Mapping[str, Path],
    jenkins_schema: xmlschema.XMLSchema,
    words: tuple[str, ...],
    failures: int,
    skipped: int,
) -> None:
    text = invoke(places, *words, "--format", "junit").stdout
    jenkins_schema.validate(text)
    root = ET.fromstring(text)  # noqa: S314 - our own
    for element in (root, *root.iter("testsuite")):
        for kind, tag in (("failures", "failure"), ("skipped", "skipped"), ("tests", "testcase")):
            if (element.tag, kind) != ("testsuites", "skipped"):
                assert int(element.get(kind, -1)) == len(list(element.iter(tag))), kind
    assert len(list(root.iter("failure"))) == failures
    assert len(list(root.iter("skipped"))) == skipped


def test_junit_names_do_not_depend_on_where_recordings_lie(
    places: Mapping[str, Path], tmp_path: Path
) -> None:
    def names(base: Path, *others: Path) -> list[tuple[str | None, ...]]:
        text = invoke({}, base, *others, "--format", "junit").stdout
        root = ET.fromstring(text)  # noqa: S314 - our own
        return [
            (suite.get("name"), case.get("classname"), case.get("name"))
            for suite in root.iter("testsuite")
            for case in suite.iter("testcase")
        ]

    here = [places[name] for name in ("base", "same", "slow")]
    there = [shutil.copytree(place, tmp_path / f"build-{i}") for i, place in enumerate(here)]
    assert names(*here) == names(*there)
    assert names(*here[:2]) == names(*here)[:5], "another comparison renames no case"
    assert len(set(names(*here))) == len(names(*here))
    suite, case, name = names(*here)[0]
    assert (suite, case) == ("ipitrace.unicast-running",) * 2
    assert name == "send.p50"


def test_openmetrics_names_kernels_and_gates(places: Mapping[str, Path]) -> None:
    gates = ("--fail-on", "deliver:+5%", "--fail-on", "exits:+0.1")
    text = invoke(places, "base", "slow", *gates, "--format", "openmetrics").stdout
    families = {family.name: family for family in text_string_to_metric_families(text)}
    kernels = {
        sample.labels["run"]: sample.labels["kernel"]
        for sample in families["ipitrace_median"].samples
    }
    assert kernels == {str(places["base"]): "6.1", str(places["slow"]): "6.2"}
    for family in ("ipitrace_change", "ipitrace_verdict", "ipitrace_gate"):
        for sample in families[family].samples:
            assert sample.labels["base_kernel"] == "6.1", family
            assert sample.labels["patched_kernel"] == "6.2", family
    found = {
        (sample.labels["gate"], sample.labels["metric"]): sample.labels["state"]
        for sample in families["ipitrace_gate"].samples
        if sample.value == 1.0
    }
    assert found == {
        ("deliver:+5%", "deliver.p50"): "broken",
        ("exits:+0.1", "exits.sender"): "held",
        ("exits:+0.1", "exits.target"): "held",
    }
    ungated = invoke(places, "base", "slow", "--format", "openmetrics").stdout
    assert "ipitrace_gate" not in ungated


def test_openmetrics_has_each_series_once(places: Mapping[str, Path]) -> None:
    words = ("base", "fast", "slow", "fast", "--fail-on", "deliver.p50:+5%")
    text = invoke(places, *words, "--format", "openmetrics").stdout
    series = [line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")]
    assert len(series) == len(set(series)) > 100
    assert list(text_string_to_metric_families(text))


def test_openmetrics_is_read_by_a_real_parser(places: Mapping[str, Path]) -> None:
    text = invoke(places, "base", "fast", "--format", "openmetrics").stdout
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert {family.type for family in families.values()} == {"gauge"}

    def value(family: str, **labels: str) -> list[float]:
        return [
            sample.value
            for sample in families[family].samples
            if labels.items() <= sample.labels.items()
        ]

    about = {"scenario": "unicast-running", "metric": "deliver.p50"}
    medians = [value("ipitrace_median", run=str(places[run]), **about) for run in ("base", "fast")]
    assert medians == [[pytest.approx(50_018, abs=5)], [pytest.approx(25_009, abs=5)]]
    assert value("ipitrace_change", **about) == [pytest.approx(-0.5, abs=0.01)]
    assert value("ipitrace_verdict", verdict="better", **about) == [1.0]
    assert value("ipitrace_verdict", verdict="worse", **about) == [0.0]


def test_csv_is_one_row_a_run_with_time_and_attributes(
    places: Mapping[str, Path], tmp_path: Path
) -> None:
    old = record(tmp_path / "old", replace(steady(), started_at="2020-02-03T04:05:06+00:00"))
    text = invoke(places, "base", "slow", old, "--format", "csv").stdout
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["run"] for row in rows] == [str(old), str(places["base"]), str(places["slow"])]
    assert list(rows[0])[:5] == ["time", "run", "kernel", "ipitrace_version", "emulated"]
    assert [row["kernel"] for row in rows] == ["", "6.1", "6.2"]
    for row in rows:
        when = datetime.strptime(row["time"], "%Y-%m-%d %H:%M:%S %z")
        assert when.tzinfo is not None
        assert float(row["unicast-running.deliver.p50"]) > 0
    assert float(rows[2]["unicast-running.deliver.p50"]) == pytest.approx(55_020, abs=5)


@pytest.mark.parametrize("style", COMPARISON.formats)
def test_a_file_gets_the_format_and_the_terminal_the_verdict(
    places: Mapping[str, Path], style: str, tmp_path: Path
) -> None:
    file = tmp_path / "out"
    done = invoke(places, "base", "slow", "--format", style, "--output", file)
    assert code_of(done) == ExitCode.REGRESSION
    assert file.read_text() == invoke(places, "base", "slow", "--format", style).stdout
    assert len(done.stdout.splitlines()) == 1
    assert "worse in" in done.stdout
    failed = invoke(places, "base", "slow", "--format", style, "--output", tmp_path / "no" / "x")
    assert isinstance(failed.exception, HostError)


def test_two_scenarios_make_two_suites(tmp_path: Path) -> None:
    row = steady().scenarios[0]
    run = run_of(*(replace(row, name=name) for name in ("self", "broadcast")))
    places = {name: record(tmp_path / name, run) for name in ("one", "two")}
    root = ET.fromstring(invoke(places, "one", "two", "--format", "junit").stdout)  # noqa: S314 - our own
    assert len(root.findall("testsuite")) == 2
    assert code_of(invoke(places, "one", "two", "--scenario", "self")) == ExitCode.OK


def test_a_table_fits_the_width_of_a_pipe(places: Mapping[str, Path]) -> None:
    gate = ("--fail-on", "unicast-running:round_trip.p99.9:+5%")
    lines = invoke(places, "base", "slow", *gate).stdout.splitlines()
    assert max(map(len, lines[:-1])) <= PIPE_WIDTH


def test_long_names_and_large_figures_fit_too(tmp_path: Path) -> None:
    counted = ExitsPerIpi("kvm_exit", {"exits": 1.0, "EXTERNAL_INTERRUPT": 1.0}, {"exits": 0.0})
    for name, factor in (("base", 1.0), ("slow", 900.0)):
        record(tmp_path / name, steady(factor=factor, exits=[counted] * 8))
    said = invoke({}, tmp_path / "base", tmp_path / "slow", "--all").stdout
    lines = said.splitlines()
    assert max(map(len, lines[:-1])) <= PIPE_WIDTH
    assert any(line.startswith("exits.sender.EXTERNAL_INTERRUPT ") for line in lines)
    assert "45.02M" in said


def test_every_output_says_that_a_host_is_emulated(tmp_path: Path) -> None:
    recording = record(tmp_path / "bochs", host(steady(), emulated="Bochs"))
    for style, mark in {
        "table": "Emulated host: cycles are not real time.",
        "markdown": "Emulated host: cycles are not real time.",
        "junit": "Emulated host: cycles are not real time.",
        "json": '"emulated": "Bochs"',
        "csv": ",Bochs,",
        "openmetrics": f'ipitrace_emulated{{run="{recording}",kernel=""}} 1.0',
    }.items():
        assert mark in invoke({}, recording, recording, "--format", style).stdout, style
