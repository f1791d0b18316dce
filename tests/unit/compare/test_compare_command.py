# SPDX-License-Identifier: Apache-2.0
"""`ipitrace compare` from recordings to every format and exit code."""

import csv
import functools
import io
import json
import re
import shutil
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import click
import numpy as np
import pytest
import xmlschema
from click.testing import CliRunner, Result
from comparisons import exits_of, noisy, row_of, run_of, steady
from jsonschema import Draft202012Validator
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from runs import made_host

from ipitrace.base.console import PIPE_WIDTH
from ipitrace.base.errors import ExitCode, HostError, IpitraceError, UsageError
from ipitrace.commands.ab import ab
from ipitrace.commands.compare import compare
from ipitrace.compare.anchors import read_anchors
from ipitrace.recording.result import RunResult
from ipitrace.recording.row import ExitsPerIpi
from ipitrace.recording.writer import RecordingWriter
from ipitrace.render.formats import COMPARISON

RECORDINGS = Path(__file__).parents[2] / "data/recordings"
DOCS = Path(__file__).parents[3] / "docs"


def record(directory: Path, run: RunResult) -> Path:
    with RecordingWriter(directory, force=False) as writer:
        writer.finish(run)
    return directory


def host(run: RunResult, **fingerprint: object) -> RunResult:
    return replace(run, host=made_host(**fingerprint))


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Recordings of a steady host: base, as it was again, and patched ones."""
    root = tmp_path_factory.mktemp("recordings")
    rng = np.random.default_rng(3)
    through = {"exits": [exits_of(0.0)] * 8, "paths": [{"exitless": 1.0}] * 8}
    runs = {
        "noise": host(run_of(row_of("unicast-running", noisy(rng, 8, 0.1)))),
        "exitless": host(steady(**through), kernel_release="6.1"),
        "base": host(steady(), kernel_release="6.1"),
        "same": host(steady(), kernel_release="6.1"),
        "slow": host(steady(factor=1.1), kernel_release="6.2"),
        "fast": host(steady(factor=0.5, exits=[exits_of(0.0)] * 8), kernel_release='6.2 "x"'),
        "few": host(steady(3), kernel_release="6.1"),
        "other": host(steady(), kernel_release="6.1", smt="on"),
    }
    return {name: record(root / name, run) for name, run in runs.items()}


def invoke(places: Mapping[str, Path], *words: object, env: dict[str, str] | None = None) -> Result:
    known = [str(places.get(str(word), word)) for word in words]
    return CliRunner().invoke(compare, known, env=env, standalone_mode=False)


def code_of(done: Result) -> ExitCode:
    if isinstance(done.exception, IpitraceError):
        return done.exception.exit_code
    assert done.exception is None, done.exception
    return ExitCode(done.return_value)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("base", "same"), 0),
        (("base", "slow"), 1),
        (("base", "fast"), 0),
        (("base", "same", "slow"), 1),
        (("few", "few"), 0),
        (("few", "few", "--strict"), 4),
        (("base", "slow", "--fail-on", "deliver:+20%"), 0),
        (("base", "slow", "--fail-on", "deliver:+5%"), 1),
        (("base", "slow", "--min-effect", "20%"), 0),
        (("base", "fast", "--require", "deliver:-30%"), 0),
        (("base", "same", "--require", "deliver:-30%"), 1),
        (("base", "slow", "--require", "deliver:-5%"), 1),
        (("few", "few", "--require", "deliver:-30%"), 0),
        (("few", "few", "--require", "deliver:-30%", "--strict"), 4),
        (("base", "fast", "--require", "deliver:-30%", "--fail-on", "exits:+0.1"), 0),
        (("base", "fast", "--require", "deliver:+30%"), 2),
        (("base", "fast", "--fail-on", "round_trip.p50:-30%"), 2),
        (("base", "same", "--fail-on", "round_trip.p50:-30%"), 2),
        (("base", "exitless", "--fail-on", "path.exitless:-0.1"), 0),
        (("exitless", "base", "--fail-on", "path.exitless:-0.1"), 1),
        (("base", "exitless", "--fail-on", "path.exitless:+0.1"), 2),
        (("base", "exitless", "--require", "path.exitless:+0.9"), 0),
        (("exitless", "base", "--require", "path.exitless:+0.9"), 1),
        (("base", "other"), 3),
        (("base", "other", "--allow", "smt"), 0),
        (("base", "other", "--allow", "smpt"), 2),
        (("base", "same", "--fail-on", "speed:+5%"), 2),
        (("base", "same", "--min-effect", "5"), 2),
        (("base", "same", "--min-effect", "exits:5%"), 2),
        (("base", "same", "--min-effect", "0%"), 2),
        (("base", "nowhere"), 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else str(value),
)
def test_exit_codes(places: Mapping[str, Path], words: tuple[str, ...], code: int) -> None:
    assert code_of(invoke(places, *words)) == code


def test_gates_from_a_file(places: Mapping[str, Path], tmp_path: Path) -> None:
    gates = tmp_path / "gates.toml"
    gates.write_text('fail-on = ["deliver:+5%"]\nallow = ["smt"]\nstrict = true\n')
    assert code_of(invoke(places, "base", "slow", "--gates", gates)) == ExitCode.REGRESSION
    assert code_of(invoke(places, "base", "other", "--gates", gates)) == ExitCode.OK
    gates.write_text('require = ["deliver:-30%"]\n')
    assert code_of(invoke(places, "base", "fast", "--gates", gates)) == ExitCode.OK
    assert code_of(invoke(places, "base", "slow", "--gates", gates)) == ExitCode.REGRESSION
    gates.write_text('fail-on = ["deliver:-30%"]\n')
    assert code_of(invoke(places, "base", "fast", "--gates", gates)) == ExitCode.USAGE


@pytest.mark.parametrize("command", [compare, ab])
def test_the_help_shows_a_file_of_gates(
    places: Mapping[str, Path], command: click.Command, tmp_path: Path
) -> None:
    text = CliRunner().invoke(command, ["--help"]).stdout
    shown = text.partition("A file of gates, for --gates:\n")[2]
    gates = tmp_path / "gates.toml"
    gates.write_text(shown)
    keys = tomllib.loads(shown)
    assert keys.keys() == {"fail-on", "require", "allow", "strict"}
    assert code_of(invoke(places, "base", "fast", "--gates", gates)) == ExitCode.OK
    assert code_of(invoke(places, "base", "slow", "--gates", gates)) == ExitCode.REGRESSION
    assert textwrap.indent(textwrap.dedent(shown), " " * 4) in (DOCS / "statistics.md").read_text()


def test_the_last_line_is_the_verdict(places: Mapping[str, Path]) -> None:
    done = invoke(places, "base", "slow")
    last = done.stdout.splitlines()[-1]
    assert last.startswith(f"{places['slow']} compared with {places['base']}: worse in ")
    assert "+10.0 %" in last
    assert "6.1" in done.stdout
    assert "differs: kernel_release: 6.1 -> 6.2 (may differ)" in done.stdout


def test_the_last_line_tells_of_gates(places: Mapping[str, Path]) -> None:
    """They decide the exit code, so that a verdict alone would not explain it."""
    gates = ("--fail-on", "deliver:+20%", "--fail-on", "send:+5%", "--fail-on", "exits:+0.1")
    last = invoke(places, "base", "slow", *gates).stdout.splitlines()[-1]
    assert "Gates: 1 broken (send.p50 of unicast-running), 3 held." in last
    assert "Gates" not in invoke(places, "base", "slow").stdout


@pytest.mark.parametrize(("style", "first"), [("table", ""), ("markdown", "**")])
def test_gates_speak_first(places: Mapping[str, Path], style: str, first: str) -> None:
    """All are held, which is what the exit code says; the verdict alone is another matter."""
    words = ("noise", "noise", "--fail-on", "deliver:+90%", "--format", style)
    done = invoke(places, *words)
    assert code_of(done) == ExitCode.OK
    last = done.stdout.splitlines()[-1]
    assert last.startswith(f"{first}Gates: 1 held. Inconclusive: ")


@pytest.mark.parametrize("style", ["table", "markdown"])
def test_a_table_of_gates_says_what_each_asks_for(places: Mapping[str, Path], style: str) -> None:
    gates = ("--fail-on", "deliver:+5%", "--require", "send:-30%")
    said = invoke(places, "base", "slow", *gates, "--format", style).stdout
    lines = said[said.index("gate ") :].splitlines()
    head = " ".join(lines[:2])
    assert "state" in head
    assert "held" not in head
    assert "fail-on" in said
    assert "require" in said


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


@functools.cache
def schema() -> Draft202012Validator:
    text = resources.files("ipitrace").joinpath("schemas/compare.schema.json").read_text()
    Draft202012Validator.check_schema(json.loads(text))
    return Draft202012Validator(
        json.loads(text), format_checker=Draft202012Validator.FORMAT_CHECKER
    )


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


def test_a_recordings_run_json_is_the_recording(places: Mapping[str, Path], tmp_path: Path) -> None:
    """Its checksum is looked at, as that of the directory is."""
    whole = tmp_path / "whole"
    shutil.copytree(places["slow"], whole)
    rows = [
        json.loads(invoke(places, "base", name, "--format", "json").stdout)["comparisons"][0][
            "rows"
        ]
        for name in (whole / "run.json", whole)
    ]
    assert rows[0] == rows[1]
    (whole / "run.json").write_text((whole / "run.json").read_text() + " ")
    refused = invoke(places, "base", whole / "run.json").exception
    assert isinstance(refused, UsageError)
    assert "was changed after it was made" in refused.message


def test_a_run_json_alone_is_enough(places: Mapping[str, Path], tmp_path: Path) -> None:
    alone = tmp_path / "some.json"
    alone.write_text((places["slow"] / "run.json").read_text())
    assert code_of(invoke(places, "base", alone)) == ExitCode.REGRESSION
    for text in ("", "[]", '{"schema_version": 99}', '{"schema_version": 1}'):
        alone.write_text(text)
        assert code_of(invoke(places, "base", alone)) == ExitCode.USAGE, text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"started_at": "yesterday"}, "its started_at is not a time"),
        ({"started_at": "2026-02-03T04:05:06"}, "its started_at is not a time"),
        ({"started_at": "0001-01-01T00:00:00+14:00"}, "its started_at is not a time"),
        ({"started_at": "9999-12-31T23:59:59-14:00"}, "its started_at is not a time"),
        ({"scenarios": steady().scenarios * 2}, "it contains a scenario twice"),
        ({"scenarios": steady(factor=1e300).scenarios}, "it holds a number that is out of range"),
        (
            {"scenarios": steady(exits=[exits_of(float("nan"))] * 8).scenarios},
            "it holds a number that is out of range",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_values_that_cannot_be_are_refused(
    places: Mapping[str, Path], tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    alone = tmp_path / "some.json"
    alone.write_text(replace(steady(), **change).to_json())
    failed = invoke(places, "base", alone)
    assert isinstance(failed.exception, UsageError)
    assert said in failed.exception.message


def test_a_message_leaves_paths_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "ipitrace", "compare", "empty", "empty"],
        cwd=tmp_path,
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode == ExitCode.USAGE
    assert done.stderr.startswith("ipitrace: empty is not a recording")


def test_anchors_are_shown_apart_and_with_their_source(places: Mapping[str, Path]) -> None:
    anchors = read_anchors()
    assert len(anchors) >= 8
    for style in ("table", "markdown"):
        plain = invoke(places, "base", "slow", "--format", style).stdout
        shown = invoke(places, "base", "slow", "--format", style, "--anchors").stdout
        assert shown.endswith(plain), "they change nothing"
        text = " ".join(shown.split())
        for anchor in anchors:
            assert anchor.figures in text
            assert anchor.source in text
        if style == "table":
            before = shown.removesuffix(plain).splitlines()
            assert max(map(len, before)) <= PIPE_WIDTH


def test_two_scenarios_make_two_suites(tmp_path: Path) -> None:
    row = steady().scenarios[0]
    run = run_of(*(replace(row, name=name) for name in ("self", "broadcast")))
    places = {name: record(tmp_path / name, run) for name in ("one", "two")}
    root = ET.fromstring(invoke(places, "one", "two", "--format", "junit").stdout)  # noqa: S314 - our own
    assert len(root.findall("testsuite")) == 2
    assert code_of(invoke(places, "one", "two", "--scenario", "self")) == ExitCode.OK


def test_other_commands_do_without_scipy() -> None:
    script = "import sys, ipitrace.cli; print('scipy' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=True, text=True
    )
    assert done.stdout == "False\n"


def test_runs_made_one_after_the_other_are_said_to_be(places: Mapping[str, Path]) -> None:
    said = invoke(places, "base", "same").stdout
    assert "note: each side has one recording" in said
    assert said.splitlines()[-1].endswith("differences between runs are not taken into account.")
    document = json.loads(invoke(places, "base", "same", "--format", "json").stdout)
    assert document["comparisons"][0]["interleaved"] is False


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Directories of recordings, all of one side before all of the other, and taking turns."""
    root = tmp_path_factory.mktemp("sides")
    for name, factor, hours in (
        ("base", 1.0, (0, 1, 2)),
        ("later", 1.5, (3, 4, 5)),
        ("between", 1.5, (1, 2, 3)),
    ):
        for i, hour in enumerate(hours):
            run = steady(factor=factor * (1 + i / 1000))
            started = f"2026-02-03T{hour:02}:00:00+00:00"
            record(
                root / name / f"{i}", host(replace(run, started_at=started), kernel_release="6.1")
            )
    (root / "base" / ".0.part-1").mkdir()
    (root / "base" / "notes").mkdir()
    return {path.name: path for path in root.iterdir()}


def test_a_directory_of_recordings_is_one_side(sides: Mapping[str, Path]) -> None:
    done = invoke(sides, "base", "later")
    assert code_of(done) == ExitCode.REGRESSION
    assert f"{sides['later']} (6.1, 3 recordings) against {sides['base']}" in " ".join(
        done.stdout.split()
    )
    assert "recordings of one side differ by up to 0.2 % in" in done.stdout
    assert "note: one side was measured completely before the other" in done.stdout
    assert "One recording" not in done.stdout
    assert "note:" not in invoke(sides, "base", "between").stdout
    document = json.loads(invoke(sides, "base", "later", "--format", "json").stdout)
    schema().validate(document)
    (found,) = document["comparisons"]
    assert [found[side]["recordings"] for side in ("base", "patched")] == [3, 3]
    headline = next(row for row in found["rows"] if row["metric"] == "deliver.p50")
    assert (headline["base"]["n"], headline["base"]["low"]) == (3, None)
    assert headline["between_recordings"] == pytest.approx(0.002, abs=1e-4)
    rows = list(
        csv.DictReader(io.StringIO(invoke(sides, "base", "later", "--format", "csv").stdout))
    )
    assert len(rows) == 6


def test_times_of_other_zones_and_forms_are_sorted_as_times(tmp_path: Path) -> None:
    """As texts they sort otherwise."""
    base = ("2026-02-03T10:00:00+09:00", "2026-02-02T20:30:00-05:00", "20260203T0200Z")
    later = ("2026-02-03T00:00:00-02:00", "2026-02-03T02:00:01.5Z", "2026-W06-2T04:05:00+02:00")
    for name, times in (("base", base), ("later", later)):
        for i, time in enumerate(times):
            run = steady(factor=1 + i / 1000)
            record(tmp_path / name / f"{i}", replace(run, started_at=time))
    places = {name: tmp_path / name for name in ("base", "later")}
    document = json.loads(invoke(places, "base", "later", "--format", "json").stdout)
    schema().validate(document)
    (found,) = document["comparisons"]
    assert [
        found[side][which]
        for side in ("base", "patched")
        for which in ("started_at", "last_started_at")
    ] == [
        "2026-02-03T01:00:00+00:00",
        "2026-02-03T02:00:00+00:00",
        "2026-02-03T02:00:00+00:00",
        "2026-02-03T02:05:00+00:00",
    ]
    said = "note: one side was measured completely before the other"
    assert said in invoke(places, "base", "later").stdout
    assert said in invoke(places, "later", "base").stdout
    junit = ET.fromstring(invoke(places, "base", "later", "--format", "junit").stdout)  # noqa: S314 - our own
    assert {suite.get("timestamp") for suite in junit} == {"2026-02-03T02:00:00"}
    rows = csv.DictReader(io.StringIO(invoke(places, "base", "later", "--format", "csv").stdout))
    assert [row["time"][11:] for row in rows] == [
        "01:00:00 +0000",
        "01:30:00 +0000",
        "02:00:00 +0000",
        "02:00:00 +0000",
        "02:00:01 +0000",
        "02:05:00 +0000",
    ]


def test_a_directory_without_recordings_is_refused(sides: Mapping[str, Path]) -> None:
    failed = invoke(sides, "base", sides["base"] / "notes")
    assert isinstance(failed.exception, UsageError)
    assert "is not a recording" in failed.exception.message


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


@pytest.mark.parametrize("emulated", ["amd-tcg", "intel-bochs"])
def test_an_emulated_and_a_real_recording_share_no_cycles(emulated: str) -> None:
    sides = (RECORDINGS / "micro-pvm", RECORDINGS / emulated, "--scenario", "unicast-running")
    refused = invoke({}, *sides)
    assert code_of(refused) == ExitCode.ENVIRONMENT
    allow: list[str] = []
    while isinstance(refused.exception, IpitraceError):  # one look names keys, the next scenarios
        assert refused.exception.hint is not None
        named = re.findall(r"--allow [\w.-]+\w", refused.exception.hint)
        assert named
        allow += [word for option in named for word in option.split()]
        refused = invoke({}, *sides, *allow)
    assert "emulated" in allow
    done = json.loads(invoke({}, *sides, *allow, "--format", "json").stdout)
    (comparison,) = done["comparisons"]
    assert {row["unit"] for row in comparison["rows"]} == {"exits/IPI", "share"}
    assert {row["why"] for row in comparison["missing"]} == {"emulated and real cycles"}
