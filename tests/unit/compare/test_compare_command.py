# SPDX-License-Identifier: Apache-2.0
"""`ipitrace compare`: which recordings it takes, its verdict, its gates and its exit codes."""

import csv
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
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import click
import pytest
from click.testing import CliRunner
from compared import code_of, host, invoke, record, schema
from comparisons import exits_of, steady

from ipitrace.base.console import PIPE_WIDTH
from ipitrace.base.errors import ExitCode, IpitraceError, UsageError
from ipitrace.commands.ab import ab
from ipitrace.commands.compare import compare
from ipitrace.compare.anchors import read_anchors

RECORDINGS = Path(__file__).parents[2] / "data/recordings"
DOCS = Path(__file__).parents[3] / "docs"


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
    document = json.loads(invoke(places, "base", "same", "--json").stdout)
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
