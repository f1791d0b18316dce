# SPDX-License-Identifier: Apache-2.0
"""The first screen of a run."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from runs import made_run

from ipitrace.base.console import unstyled
from ipitrace.base.resources import example_dir
from ipitrace.recording.reader import read_run
from ipitrace.recording.result import RunResult
from ipitrace.recording.row import Histogram
from ipitrace.render.run.brief import render_brief
from ipitrace.render.run.tables import render_run
from ipitrace.words.sections import ALL, SECTIONS

RECORDINGS = Path(__file__).parents[2] / "data/recordings"
OF_SECTION = {
    "stages": "Stages of unicast-running",
    "exits": "VM exits per IPI",
    "paths": "Paths, as host events prove them",
    "events": "Tracepoints per IPI",
    "observer": "Observer cost",
    "losses": "losses ",
}


def example() -> RunResult:
    return read_run(example_dir())


@pytest.mark.parametrize("name", ["micro-pvm-2", "intel-bochs-2", "intel-bochs", "passthrough-on"])
def test_it_fits_on_a_screen_of_80_columns(name: str) -> None:
    run = read_run(RECORDINGS / name)
    lines = unstyled(render_brief(run, width=80)).splitlines()
    assert max(map(len, lines)) <= 80
    if len(run.scenarios) <= 4:  # the shell's prompt is the last line
        assert len(lines) < 24


def test_it_has_what_people_look_for() -> None:
    text = unstyled(render_brief(example(), width=100))
    row = example().scenarios[0]
    assert row.send_cycles is not None
    assert row.deliver_cycles is not None
    assert re.search(
        rf"^  S +{row.send_cycles.p50} +\d+ ns  p99 +{row.send_cycles.p99}$", text, re.MULTILINE
    )
    assert re.search(rf"^  D +{row.deliver_cycles.p50} ", text, re.MULTILINE)
    assert "unicast-running  480 sent, emulated 100%, exits 2.05 + 2.00 per IPI" in text
    assert "exit+KVM 24%, wake-up 56%, entry 20%" in text


def test_it_says_why_nothing_was_traced() -> None:
    run = made_run(observer=None, observer_absent="nothing was traced: this host has no such VM")
    assert "nothing was traced: this host has no such VM" in unstyled(render_brief(run))


def test_where_d_goes_adds_up() -> None:
    for name in ("micro-pvm-2", "intel-bochs-2"):
        text = unstyled(render_brief(read_run(RECORDINGS / name)))
        found = re.findall(r"(?:exit\S* \d+%.*|wake-up \d+%.*)$", text, re.MULTILINE)
        assert found
        for line in found:
            assert 93 <= sum(map(int, re.findall(r"(\d+)%", line))) <= 107, line


@pytest.mark.parametrize(("unicode", "bars"), [(True, "▂ █▅"), (False, ". @+")])
def test_a_distribution_is_drawn(*, unicode: bool, bars: str) -> None:
    run = example()
    row = run.scenarios[0]
    object.__setattr__(row, "deliver_histogram", Histogram(100, 180, (1, 0, 7, 4), 3))
    text = unstyled(render_brief(run, unicode=unicode))
    assert f"100 {bars} 180" in text
    assert unicode or bars.isascii()


def test_doubts_are_shown_whole_and_notes_are_counted() -> None:
    notes = tuple(f"note number {i}" for i in range(9))
    (row,) = made_run().scenarios
    object.__setattr__(row, "notes", notes)
    run = made_run(scenarios=(row,), untrustworthy=("x " * 90 + "end of the doubt",))
    text = unstyled(render_brief(run, width=80))
    assert "end of the doubt" in " ".join(text.split())
    assert "note number 0" in text
    assert "note   8 more: --section losses" in text


@pytest.mark.parametrize("chosen", OF_SECTION)
def test_a_section_is_printed_alone(chosen: str) -> None:
    text = render_run(example(), sections=(chosen,), width=100)
    found = {name for name, title in OF_SECTION.items() if title in text}
    assert found == {chosen}


def test_all_sections() -> None:
    text = render_run(example(), sections=(ALL,), width=100)
    assert all(title in text for title in OF_SECTION.values())
    assert set(OF_SECTION) | {ALL} == set(SECTIONS)


def shown(*words: str, **environment: str) -> str:
    """What a terminal is sent."""
    leader, follower = pty.openpty()
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm"}
    command = [sys.executable, "-m", "ipitrace", "report", "--example", *words]
    with subprocess.Popen(command, stdout=follower, env=env | environment) as process:
        os.close(follower)
        parts = []
        while True:
            try:
                part = os.read(leader, 65536)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            parts.append(part)
    os.close(leader)
    assert process.returncode == 0
    return b"".join(parts).decode()


def test_only_a_terminal_that_wants_it_gets_colour() -> None:
    assert "\x1b[1municast-running\x1b[0m" in shown(LC_ALL="C.UTF-8")
    assert "\x1b" not in shown(NO_COLOR="1")
    assert "\x1b" not in shown(TERM="dumb")
    command = [sys.executable, "-m", "ipitrace", "report", "--example"]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    piped = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    assert "\x1b" not in piped.stdout


def test_a_terminal_without_unicode_gets_ascii_bars() -> None:
    text = shown(LC_ALL="C", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert "█" not in text
    assert "\\u258" not in text
