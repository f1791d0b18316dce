# SPDX-License-Identifier: Apache-2.0
"""A run.json and gates that were made to harm; what they need is bounded."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hostile_recordings import RECORDED, change_run, refused, said_here, seal
from recordings import read_table

from ipitrace.commands.report import report
from ipitrace.measure.lookout import _MOST_NOTED
from ipitrace.measure.request import MAX_OF_ALL_SCENARIOS
from ipitrace.recording.reader import read_run
from ipitrace.recording.result import Disturbance
from ipitrace.recording.writer import CHECKSUM_FILE, RUN_FILE, RecordingWriter
from ipitrace.words.scenarios import Mode


def test_a_run_json_that_grows_when_parsed(recording: Path) -> None:
    """Before: 1.8 GiB and 20 s for 20 MiB in `compare`, and worse made otherwise."""
    text = (recording / RUN_FILE).read_text()
    for n, said in ((7_000_000, "more than 16 MiB"), (2_000_000, "more than 600000 values")):
        (recording / RUN_FILE).write_text(
            text.replace('"fingerprint": {}', '"fingerprint": {"x": [' + "[]," * n + "[]]}")
        )
        seal(recording)
        assert said in refused("report", recording)
        assert said in said_here("compare", recording, recording)
        assert said in said_here("compare", recording / RUN_FILE, recording / RUN_FILE)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("[" * 900 + "]" * 900, "nested too deeply"),
        ("9" * 5000, "out of range"),
        ("1" + "0" * 400, "out of range"),
        (str(2**64), "out of range"),
        ("1e999", "out of range"),
        ("NaN", "out of range"),
        ("-Infinity", "out of range"),
        ('"\\ud800"', "not Unicode"),
        ('"' + "x" * 1_000_000 + '"', "more than 16384 characters"),
        ('{"a": 1, "a": 2}', "a key twice"),
        ('{"a\\nb": 1}', "a key that is not a name"),
        ('{"' + "x" * 300 + '": 1}', "a key that is not a name"),
    ],
)
def test_values_that_json_has_and_nobody_expects(recording: Path, what: str, said: str) -> None:
    text = (recording / RUN_FILE).read_text()
    (recording / RUN_FILE).write_text(
        text.replace('"fingerprint": {}', f'"fingerprint": {{"x": {what}}}')
    )
    seal(recording)
    for words in (("report", recording), ("compare", recording, recording)):
        assert said in said_here(*words)


@pytest.mark.parametrize(
    "change",
    [
        lambda run: run["clock"].update(half_width_ns=1.0, half_width_cycles=None),
        lambda run: run["scenarios"][0].update(
            stages={"spans": 0, "bound_cycles": 0, "sequences": [], "steps": []}
        ),
    ],
)
def test_values_that_do_not_fit_together(recording: Path, change: Callable[[Any], object]) -> None:
    change_run(recording, change)
    assert "is damaged" in said_here("report", recording, "-v")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda run: run["host"].clear(), "the key host.one_line is missing"),
        (lambda run: run["host"].update(pinning=[]), "host.pinning is list, not an object"),
        (lambda run: run["guest"].clear(), "the key guest.kind is missing"),
        (lambda run: run["guest"].update(pinned_cpus=7), "guest.pinned_cpus is int, not an array"),
        (lambda run: run["host"].update(fingerprint=[]), "host.fingerprint is list, not an object"),
        (
            lambda run: run["host"].update(fingerprint={"kernel_release": 6}),
            "host.fingerprint.kernel_release is int, not str",
        ),
        (
            lambda run: run["host"].update(fingerprint={"emulated": {}}),
            "host.fingerprint.emulated is dict, not str",
        ),
        (
            lambda run: run["host"].update(neighbours={"kvm_processes": [{"pid": 7}]}),
            "the key host.neighbours.kvm_processes[0].name is missing",
        ),
        (lambda run: run["guest"].update(emulated=True), "guest.emulated is bool, not str"),
    ],
)
def test_a_host_and_a_guest_of_another_form(
    recording: Path, change: Callable[[Any], object], said: str
) -> None:
    change_run(recording, change)
    assert said in said_here("report", recording)
    for kind in ("table", "csv", "openmetrics", "junit", "markdown", "json"):
        assert said in said_here("compare", recording, recording, "--format", kind)


def test_an_exit_reason_without_a_name(tmp_path: Path) -> None:
    """It would be taken for the sum of all reasons."""
    run = json.loads((RECORDED / RUN_FILE).read_text())
    for figures in run["scenarios"][0]["repetition_figures"]:
        if figures["exits"]:
            figures["exits"]["sender"][""] = 0.5
    given = tmp_path / "some.json"
    given.write_text(json.dumps(run))
    for words in (("report", given), ("compare", given, given, "--fail-on", "exits:+0.1")):
        assert "an exit reason or a path has no name" in said_here(*words)


def test_more_scenarios_than_can_be(recording: Path) -> None:
    change_run(recording, lambda run: run.update(scenarios=run["scenarios"] * 1001))
    assert "more than 1000 scenarios" in said_here("report", recording)


# Files that are none.


@pytest.mark.parametrize("name", [RUN_FILE, CHECKSUM_FILE, "spans.parquet"])
@pytest.mark.parametrize("kind", ["fifo", "directory", "device", "loop", "endless"])
def test_what_is_no_file_is_never_waited_for(recording: Path, name: str, kind: str) -> None:
    path = recording / name
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "loop":
        path.symlink_to(path)
    else:
        with path.open("wb") as file:
            file.truncate(1 << 42)
    refused("report", recording, "--ipi", 3)
    if name == RUN_FILE:
        said_here("compare", recording, recording)
        said_here("compare", path, path)


def test_a_directory_of_too_much(tmp_path: Path) -> None:
    for n in range(10_001):
        (tmp_path / str(n)).touch()
    said = said_here("compare", tmp_path, tmp_path)
    assert "is too large: it has more than 10000 entries" in said


# Gates.


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a = " + b"[" * 10_000, "recursion"),
        (b"a = " + b"{a=" * 5_000, "recursion"),
        (b"#" * (17 << 10), "more than 16 KiB"),
        (b"\xff", "can't decode"),
        (b"fail-on = [" + b"9" * 5000 + b"]", "digits"),
        (b'fail-on = ["deliver.p50:+' + b"9" * 400 + b'%"]', "is not a gate"),
    ],
)
def test_gates_that_harm(recording: Path, tmp_path: Path, content: bytes, said: str) -> None:
    gates = tmp_path / "gates.toml"
    gates.write_bytes(content)
    assert said in said_here("compare", recording, recording, "--gates", gates)


@pytest.mark.parametrize("kind", ["fifo", "directory", "device"])
def test_gates_that_are_no_file(recording: Path, tmp_path: Path, kind: str) -> None:
    gates = tmp_path / "gates.toml"
    if kind == "fifo":
        os.mkfifo(gates)
    elif kind == "device":
        gates.symlink_to("/dev/zero")
    else:
        gates.mkdir()
    assert "cannot be read" in said_here("compare", recording, recording, "--gates", gates)


@pytest.mark.parametrize("limit", ["9" * 400, "1e5", "0" * 10_000])
@pytest.mark.parametrize("option", ["--fail-on=deliver.p50:+", "--min-effect="])
def test_limits_that_are_no_numbers(recording: Path, option: str, limit: str) -> None:
    said_here("compare", recording, recording, f"{option}{limit}%")


def test_the_largest_run_that_is_taken_can_be_read(tmp_path: Path) -> None:
    run = read_run(Path(__file__).parents[2] / "data" / "recordings" / "intel-bochs")
    n_scenarios, repetitions = 4, MAX_OF_ALL_SCENARIOS // 4
    rows = []
    for i in range(n_scenarios):
        figures = run.scenarios[0].repetition_figures
        many = tuple(figures[j % len(figures)] for j in range(3 * repetitions))
        rows.append(replace(run.scenarios[0], name=f"s{i}", repetition_figures=many))
    noted = Disturbance(
        "waited", "vCPU 1's thread waited 10 ms for a CPU", worthless=False, share=0.1,
        scenario="s0", repetition=1, mode="counting",
    )  # fmt: skip
    with RecordingWriter(tmp_path / "r", force=False) as writer:
        written = writer.finish(
            replace(run, scenarios=tuple(rows), disturbances=(noted,) * _MOST_NOTED, tables={})
        )
    assert read_run(tmp_path / "r") == written


@pytest.mark.parametrize("cycles", [1e10, -1e10, 1e19])
@pytest.mark.parametrize("part", ["twin_cycles", "rest_cycles"])
def test_events_that_weigh_more_than_any_can(tmp_path: Path, part: str, cycles: float) -> None:
    said = said_here("report", weighing(tmp_path, part, cycles))
    assert "an event of unicast-running weighs more than any can" in said


@pytest.mark.parametrize("events", [{}, {"of_a_newer_version": 7.0}])
def test_no_event_that_is_known_has_a_weight(tmp_path: Path, events: dict[str, float]) -> None:
    recording = weighing(tmp_path, "twin_cycles", events)
    spans = read_table(recording, "spans", columns=["ipi", "scenario", "repetition"]).to_pylist()
    figures = read_run(recording).scenarios[0].repetition_figures
    (first, *_) = [f.order for f in figures if f.mode == Mode.STAGES]
    number = next(
        s["ipi"] for s in spans if (s["scenario"], s["repetition"]) == ("unicast-running", first)
    )
    printed = CliRunner().invoke(report, ["--ipi", str(number), str(recording)])
    assert printed.exception is None
    assert "unwatched" in printed.stdout
    assert "nan" not in printed.stdout


def weighing(tmp_path: Path, part: str, value: object) -> Path:
    """A real recording of format 2 whose first scenario has other weights."""
    recording = tmp_path / "weighing"
    shutil.copytree(RECORDED.with_name("micro-pvm-2"), recording)

    def change(run: Any) -> None:
        weights = run["scenarios"][0]["stages"]["corrected"]["weights"]
        one = part == "twin_cycles" and isinstance(value, float)
        weights[part] = {"kvm_eoi": value} if one else value

    change_run(recording, change)
    return recording
