# SPDX-License-Identifier: Apache-2.0
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from other_user import as_user
from recordings import (
    EVENT_MEANINGS,
    SPAN_MEANINGS,
    STEP_TSC,
    events,
    make_recording,
    plain_value,
    some_run,
    spans,
)

from ipitrace.base.console import unstyled
from ipitrace.base.errors import ExitCode, IpitraceError, UsageError
from ipitrace.base.resources import example_dir
from ipitrace.commands.report import report
from ipitrace.recording.reader import read_run
from ipitrace.recording.result import ClockResult
from ipitrace.recording.writer import RUN_FILE, RecordingWriter
from ipitrace.render.run.screen import render_screen


def invoke(*words: object) -> Result:
    return CliRunner().invoke(report, list(map(str, words)))


def refusal(*words: object) -> IpitraceError:
    error = invoke(*words).exception
    assert isinstance(error, UsageError), error
    return error


@pytest.mark.parametrize("options", [(), ("-v",)])
def test_it_prints_what_run_prints(tmp_path: Path, options: tuple[str, ...]) -> None:
    run = some_run()
    make_recording(tmp_path / "r", run=run)
    done = invoke(tmp_path / "r", *options)
    assert done.exit_code == 0, done.exception
    assert done.stdout == unstyled(render_screen(run, verbose=bool(options))) + "\n"
    assert done.stderr == ""


def test_json_is_the_file_as_it_is(tmp_path: Path) -> None:
    make_recording(tmp_path / "r")
    assert invoke(tmp_path / "r", "--json").stdout_bytes == (tmp_path / "r" / RUN_FILE).read_bytes()


@pytest.mark.parametrize("options", [(), ("-v",), ("--json",), ("--ipi", 4)])
def test_its_run_json_is_as_good_as_its_directory(
    tmp_path: Path, options: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`run` ends with "Wrote DIR/run.json"."""
    make_recording(tmp_path / "r", run=some_run())
    wanted = invoke(tmp_path / "r", *options)
    assert wanted.exit_code == 0
    assert invoke(tmp_path / "r" / RUN_FILE, *options).stdout == wanted.stdout
    monkeypatch.chdir(tmp_path / "r")
    assert invoke(RUN_FILE, *options).stdout == wanted.stdout


def test_its_run_json_is_not_taken_when_it_was_changed(tmp_path: Path) -> None:
    make_recording(tmp_path / "r", run=some_run())
    path = tmp_path / "r" / RUN_FILE
    path.write_text(path.read_text() + " ")
    assert "was changed after it was made" in refusal(path).message


def test_a_run_json_without_the_rest(tmp_path: Path) -> None:
    make_recording(tmp_path / "r", run=some_run())
    (tmp_path / "r" / RUN_FILE).rename(tmp_path / "alone.json")
    assert invoke(tmp_path / "alone.json").stdout == unstyled(render_screen(some_run())) + "\n"
    error = refusal(tmp_path / "alone.json", "--ipi", 4)
    assert error.message == f"{tmp_path}/alone.json is a run.json without its recording's tables."
    head = {"schema_version": 1, "ipitrace_version": "0", "complete": False}
    (tmp_path / "r" / RUN_FILE).write_text(json.dumps(head))
    (tmp_path / "r" / "SHA256SUMS").unlink()
    assert "is an unfinished recording" in refusal(tmp_path / "r" / RUN_FILE).message


def test_a_partial_recording_says_so_beside_its_output(tmp_path: Path) -> None:
    run = some_run(complete=False, failure="Interrupted.")
    make_recording(tmp_path / "r", run=run)
    done = invoke(tmp_path / "r")
    assert done.stdout == unstyled(render_screen(run)) + "\n"
    assert done.stderr == "This recording is partial: Interrupted.\n"


def test_one_ipi_is_told_whole(tmp_path: Path) -> None:
    make_recording(tmp_path / "r", run=some_run())
    done = invoke(tmp_path / "r", "--ipi", 4)
    assert done.exit_code == 0, done.exception
    assert (
        done.stdout
        == """\
IPI 4: unicast, repetition 0, send 4, vCPU 0 to vCPU 1, path exitless
cycles     ns  vCPU  CPU  stage    what
------  -----  ----  ---  -------  ---------------------------------------
    +0     +0     0    -  send     in the guest
  +300   +150     0    4  ipi      kvm_apic_ipi ICR 0xec, destination 0x1
  +500   +250     0    4  accept   kvm_apic_accept_irq vector 0xec, APIC 1
  +800   +400     0    -  sent     in the guest
 +2000  +1000     1    -  handler  in the guest

before: IPI 3 to vCPU 1, sent at -10000 cycles (-5000 ns), path msr-exit
after: IPI 5 to vCPU 1, sent at +10000 cycles (+5000 ns), path msr-exit
not shown: 1 event of other vCPUs at the same time
"""
    )


def test_the_first_has_none_before_it_and_the_last_none_after(tmp_path: Path) -> None:
    make_recording(tmp_path / "r", 4, run=some_run())
    assert (
        "before: none in this repetition\nafter: IPI 1" in invoke(tmp_path / "r", "--ipi", 0).stdout
    )
    last = invoke(tmp_path / "r", "--ipi", 3).stdout
    assert "before: IPI 2" in last
    assert "after: none in this repetition\n" in last


def test_other_scenarios_are_neither_neighbours_nor_events(tmp_path: Path) -> None:
    with RecordingWriter(tmp_path / "r", force=False) as writer:
        for i, name in enumerate(("one", "two")):
            writer.append("spans", spans(3, first=3 * i, scenario=name), SPAN_MEANINGS)
            writer.append("host_events", events(3, scenario=name), EVENT_MEANINGS)
        writer.finish(some_run())
    told = invoke(tmp_path / "r", "--ipi", 3).stdout
    assert told.startswith("IPI 3: two")
    assert told.count("kvm_apic_ipi") == 1
    assert "before: none in this repetition" in told


def test_a_stage_whose_event_is_missing_and_an_unknown_clock(tmp_path: Path) -> None:
    run = some_run(clock=replace(plain_value(ClockResult), tsc_hz=None))
    with RecordingWriter(tmp_path / "r", force=False) as writer:
        writer.append("spans", spans(3), SPAN_MEANINGS)
        writer.finish(run)
    lines = invoke(tmp_path / "r", "--ipi", 1).stdout.splitlines()
    assert [line.split() for line in lines if "accept" in line] == [
        ["+500", "-", "?", "?", "accept", "(its", "event", "is", "not", "recorded)"]
    ]


def test_a_stage_that_was_not_seen_is_not_told(tmp_path: Path) -> None:
    make_recording(tmp_path / "r", run=some_run())
    told = invoke(tmp_path / "r", "--ipi", 5).stdout
    assert "sent " in told
    assert "handler" not in told


@pytest.mark.parametrize(
    ("kind", "values", "told"),
    [
        ("kvm_exit", (0, 12, 1), "kvm_exit HLT, info 0x0"),
        ("kvm_eoi", (0, 0, 0xFFFF), "kvm_eoi nothing in service"),
        ("kvm_eoi", (0, 0, 0xEC), "kvm_eoi vector 0xec"),
        ("sched_switch", (0, 77, 1), "sched_switch in, after thread 77"),
        ("sched_switch", (0, 77, 0), "sched_switch out, for thread 77"),
        ("kvm_entry", (0, 0, 0), "kvm_entry"),
        ("of_tomorrow", (1, 2, 3), "of_tomorrow arg 0x1, word 0x2, detail 0x3"),
    ],
)
def test_events_are_spelled_out(
    tmp_path: Path, kind: str, values: tuple[int, int, int], told: str
) -> None:
    arg, word, detail = values
    row = {
        "scenario": np.array(["unicast"]),
        "repetition": np.zeros(1, np.int16),
        "ts_ns": np.ones(1, np.uint64),
        "tsc": np.array([1_000_000 + STEP_TSC + 7]),
        "vcpu": np.ones(1, np.int16),
        "cpu": np.ones(1, np.int16),
        "kind": np.array([kind]),
        "arg": np.array([arg], np.uint64),
        "word": np.array([word], np.uint32),
        "detail": np.array([detail], np.uint16),
    }
    make_recording(tmp_path / "r", 3, run=some_run(), events=row)
    lines = invoke(tmp_path / "r", "--ipi", 1).stdout.splitlines()
    (line,) = (line for line in lines if line.split()[:1] == ["+7"])
    assert line.endswith(f" {told}")


@pytest.mark.parametrize("number", [30, -1, 10**9])
def test_a_number_out_of_range_tells_the_range(tmp_path: Path, number: int) -> None:
    make_recording(tmp_path / "r")
    error = refusal(tmp_path / "r", "--ipi", number)
    assert error.message == f"There is no IPI {number} in {tmp_path / 'r'}."
    assert "from 0 to 29" in error.hint


def test_a_run_without_spans_has_no_timelines(tmp_path: Path) -> None:
    with RecordingWriter(tmp_path / "r", force=False) as writer:
        writer.finish(some_run())
    assert "has no table 'spans'" in refusal(tmp_path / "r", "--ipi", 0).message


@pytest.mark.parametrize(
    "words", [(), ("r", "--example"), ("--example", "--ipi", "1", "--json")], ids=" ".join
)
def test_contradicting_words_are_refused(words: tuple[str, ...]) -> None:
    refusal(*words)


def test_every_user_can_report_the_example() -> None:
    """Without any privilege, from a fresh process, and exactly as it would be printed."""
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}
    user = as_user() if os.geteuid() == 0 else ()
    command = [*user, sys.executable, "-m", "ipitrace", "report", "--example", "-v"]
    done = subprocess.run(command, capture_output=True, check=False, env=env)
    assert done.stderr == b""
    assert done.returncode == ExitCode.OK
    assert done.stdout.decode() == render_screen(read_run(example_dir()), verbose=True) + "\n"


def test_what_is_no_recording_ends_in_two_lines_and_exit_code_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ipitrace", "report", str(tmp_path)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == ExitCode.USAGE
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 2
