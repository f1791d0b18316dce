# SPDX-License-Identifier: Apache-2.0
"""`ipitrace ab` without a guest: what it starts, in which order, and how it ends."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

import pytest
from click.testing import CliRunner, Result
from comparisons import steady

from ipitrace.base.defects import DefectError
from ipitrace.base.errors import (
    ExitCode,
    HostError,
    InterruptedRunError,
    IpitraceError,
    MeasurementError,
    UsageError,
)
from ipitrace.commands.ab import ab
from ipitrace.recording.writer import RecordingWriter


class Host:
    """Stands in for the shell and for runs: notes them, and leaves a recording for each run."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.words: list[list[str]] = []
        self.state = ""
        self.fails: dict[str, tuple[int, str]] = {}

    def set_up(self, command: list[str], **_options: Any) -> subprocess.CompletedProcess[str]:
        assert command[1] == "-c"
        self.state = command[2]
        self.said.append(self.state)
        return subprocess.CompletedProcess(command, 1 if self.state == "false" else 0)

    def start(self, command: list[str], **_options: Any) -> "Run":
        return Run(self, command)


class Run:
    """Stands in for the child that measures."""

    def __init__(self, host: Host, command: list[str]) -> None:
        self.host, self.command = host, command
        self.err = bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        """It has ended."""

    def end(self, first: int, grace_s: float) -> None:
        assert first == signal.SIGINT
        assert grace_s > 1

    def finish(self, *_args: object, **_options: Any) -> int:
        host, command = self.host, self.command
        place = Path(command[command.index("-o") + 1])
        name = f"{place.parent.name}/{place.name}"
        host.said.append(name)
        host.words.append(command)
        code, stderr = host.fails.get(name, (0, ""))
        if code < 0:
            raise KeyboardInterrupt
        if not code:
            with RecordingWriter(place, force=False) as writer:
                slow = 1.2 if "slow" in (host.state, *command) else 1.0
                part = 1 + len(host.said) / 10_000
                writer.finish(steady(1, slow * part))
        self.err += stderr.encode()
        return code


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    made = Host()
    monkeypatch.setattr("ipitrace.commands.ab.subprocess.run", made.set_up)
    monkeypatch.setattr("ipitrace.commands.ab.Child", made.start)
    return made


def invoke(tmp_path: Path, *words: str) -> Result:
    where = ("-o", str(tmp_path / "ab"))
    return CliRunner().invoke(ab, [*where, *words], standalone_mode=False)


def test_the_order_is_abba(host: Host, tmp_path: Path) -> None:
    done = invoke(tmp_path, "--a", "one", "--b", "two", "--rounds", "4")
    assert done.exception is None, done.exception
    a, b = "one a/{:03}", "two b/{:03}"
    pattern = [a, b, b, a, a, b, b, a]
    rounds = [1, 1, 2, 2, 3, 3, 4, 4]
    wanted = " ".join(text.format(i) for text, i in zip(pattern, rounds, strict=True))
    assert " ".join(host.said) == wanted


def test_b_is_compared_with_a(host: Host, tmp_path: Path) -> None:
    done = invoke(tmp_path, "--a", "fast", "--b", "slow")
    assert done.return_value == ExitCode.REGRESSION
    assert host.said[-1] == "a/010"
    assert "B compared with A: worse in" in done.stdout.splitlines()[-1]
    assert "One recording" not in done.stdout


@pytest.mark.usefixtures("host")
def test_a_log_gets_a_line_a_round_and_where_the_recordings_are(tmp_path: Path) -> None:
    place = tmp_path / "ab"
    again = f"ipitrace compare {place}/a {place}/b"
    done = invoke(tmp_path, "--a", "true", "--b", "true", "--rounds", "3", "--format", "json")
    assert json.loads(done.stdout), "which has nothing else in it"
    assert re.sub(r"about \d+ s", "about N s", done.stderr).splitlines() == [
        f"ipitrace: measuring A and B in 3 rounds; the recordings go to {place}",
        "ipitrace: round 1 of 3 is measured, about N s left",
        "ipitrace: round 2 of 3 is measured, about N s left",
        "ipitrace: round 3 of 3 is measured",
        f"ipitrace: all rounds are measured; to compare them again: {again}",
    ]


@pytest.mark.usefixtures("host")
def test_a_required_gate_decides(tmp_path: Path) -> None:
    words = ("--a", "slow", "--b", "fast", "--require")
    assert invoke(tmp_path / "1", *words, "round_trip:-10%").return_value == ExitCode.OK
    assert invoke(tmp_path / "2", *words, "round_trip:-30%").return_value == ExitCode.REGRESSION
    error = invoke(tmp_path / "3", *words, "round_trip:+10%").exception
    assert isinstance(error, UsageError)
    assert not (tmp_path / "3").exists()


def test_nothing_changed_is_the_same(host: Host, tmp_path: Path) -> None:
    done = invoke(tmp_path, "--a", "true", "--b", "true", "--strict")
    assert done.return_value == ExitCode.OK
    assert host.state == "true"
    assert done.stdout.splitlines()[-1].startswith("B is the same as A")


def test_run_options_go_to_both_and_each_may_have_its_own(host: Host, tmp_path: Path) -> None:
    words = ("--a", "true", "--b", "true", "--b-run", "--count 'slow'", "--rounds", "6")
    done = invoke(tmp_path, *words, "--", "--scenario", "self", "--no-trace")
    assert done.return_value == ExitCode.REGRESSION
    for command in host.words:
        assert command[0] == sys.executable
        assert command[1] == "-I"
        assert command[5 + sys.dont_write_bytecode] == "run"
        assert "--scenario self --no-trace" in " ".join(command)
        assert ("slow" in command) == ("/b/" in " ".join(command))


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (2, UsageError),
        (3, HostError),
        (4, MeasurementError),
        (70, DefectError),
        (130, InterruptedRunError),
    ],
)
def test_a_run_that_fails_ends_it_with_the_same_code(
    host: Host, code: int, kind: type[IpitraceError], tmp_path: Path
) -> None:
    host.fails["b/001"] = (code, "ipitrace: It went wrong.\n          Do better.\n")
    retries = ("--retries", "0" if kind is MeasurementError else "2")
    error = invoke(tmp_path, "--a", "true", "--b", "true", *retries).exception
    assert type(error) is kind
    assert error.exit_code == code
    assert "It went wrong." in error.message
    assert "b/001" in error.message
    assert f"are kept in {tmp_path / 'ab'}" in error.hint
    assert host.said == ["true", "a/001", "true", "b/001", "true"]


def test_a_run_not_to_be_trusted_is_repeated_where_that_is_asked_for(
    host: Host, tmp_path: Path
) -> None:
    host.fails["b/001"] = (4, "ipitrace: Lost.\n")
    failed = invoke(tmp_path, "--a", "true", "--b", "true", "--retries", "2")
    assert isinstance(failed.exception, MeasurementError)
    assert host.said == ["true", "a/001", "true", "b/001", "b/001", "b/001", "true"]
    assert failed.stderr.count("b/001 failed: Lost. The measurement is repeated.") == 2


@pytest.mark.parametrize("rounds", ["1", "2", "3"])
def test_in_the_end_a_is_set_up(host: Host, rounds: str, tmp_path: Path) -> None:
    assert invoke(tmp_path, "--a", "one", "--b", "two", "--rounds", rounds).exception is None
    assert host.state == "one"


@pytest.mark.parametrize("code", [-2, 4])
def test_after_an_error_a_is_set_up(host: Host, code: int, tmp_path: Path) -> None:
    host.fails["b/001"] = (code, "")
    assert invoke(tmp_path, "--a", "one", "--b", "two").exception is not None
    assert host.said[-2:] == ["b/001", "one"]


@pytest.mark.parametrize(
    "words",
    [
        ("--fail-on", "deliver:+5"),
        ("--fail-on", "exits.sender.MSR_WRIT:+1"),
        ("--fail-on", "round_trip.p50:-30%"),
        ("--require", "round_trip.p50:+30%"),
        ("--min-effect", "5"),
        ("--allow", "microcod"),
        ("--gates", "nowhere.toml"),
        ("--github-summary",),
    ],
)
def test_bad_options_are_found_before_anything_is_measured(
    host: Host, words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    error = invoke(tmp_path, "--a", "true", "--b", "true", *words).exception
    assert isinstance(error, UsageError)
    assert host.said == []


def test_an_interrupt_says_what_is_kept(host: Host, tmp_path: Path) -> None:
    host.fails["b/002"] = (-2, "")
    error = invoke(tmp_path, "--a", "true", "--b", "true").exception
    assert isinstance(error, InterruptedRunError)
    assert str(tmp_path / "ab") in error.hint
    assert (tmp_path / "ab" / "b/001").is_dir()


def test_a_command_that_fails_ends_it(host: Host, tmp_path: Path) -> None:
    error = invoke(tmp_path, "--a", "true", "--b", "false").exception
    assert isinstance(error, HostError)
    assert "sets up B failed" in error.message
    assert len(host.words) == 1
    assert host.said[-2:] == ["false", "true"]


def test_a_place_that_is_taken_is_refused(host: Host, tmp_path: Path) -> None:
    (tmp_path / "ab").mkdir()
    (tmp_path / "ab" / "x").touch()
    assert isinstance(invoke(tmp_path, "--a", "x", "--b", "x").exception, UsageError)
    assert host.said == []


def test_options_that_are_no_words_are_refused(host: Host, tmp_path: Path) -> None:
    error = invoke(tmp_path, "--a", "x", "--b", "x", "--b-run", "'").exception
    assert isinstance(error, UsageError)
    assert host.said == []
