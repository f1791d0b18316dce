# SPDX-License-Identifier: Apache-2.0
"""What goes wrong while `ipitrace run` runs, and what it shows meanwhile."""

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from commands import ENVIRONMENT, IPITRACE, ipi
from run_results import FEW, assert_fine, assert_told, run_json

from ipitrace.base.errors import ExitCode

pytestmark = pytest.mark.live


@pytest.mark.usefixtures("host_is_left_as_it_was")
@pytest.mark.parametrize(
    ("fault", "words", "how"),
    [
        ("triple-fault", "triple-faulted", ()),
        ("triple-fault", "triple-faulted", ("--no-trace",)),
        ("hang", "The guest hung", ()),
    ],
)
def test_a_guest_that_dies(fault: str, words: str, how: tuple[str, ...], tmp_path: Path) -> None:
    done = ipi("run", *how, *FEW, "--inject", fault, "-o", "here", cwd=tmp_path)
    assert_told(done, ExitCode.UNTRUSTWORTHY, words, recorded=True)
    run = run_json(tmp_path / "here")
    assert not run["complete"]
    assert words in run["failure"]
    assert run["scenarios"] == []
    assert words in " ".join(done.stdout.split())


@pytest.mark.parametrize(("count", "how"), [(2, ()), (20, ("--no-trace",))])
def test_lost_ipis_make_the_run_untrustworthy(
    count: int, how: tuple[str, ...], tmp_path: Path
) -> None:
    """One in each repetition; where a repetition is of one send, nothing is delivered at all."""
    done = ipi(
        *("run", *how, "--scenario", "unicast-running", "--count", str(count)),
        *("--inject", "lost-ipi", "-o", "here"),
        cwd=tmp_path,
    )
    assert_told(done, ExitCode.UNTRUSTWORTHY, "not acknowledged in time", recorded=True)
    run = run_json(tmp_path / "here")
    (row,) = run["scenarios"]
    lost = row["repetitions"]
    assert row["sent"] == count
    assert (row["incomplete"], row["delivered"], row["coalesced"]) == (lost, count - lost, 0)
    assert (row["deliver_cycles"] is None) == (count == lost)
    assert run["complete"]
    assert run["untrustworthy"]
    assert "DOUBT" in done.stdout


class OnTerminal:
    """ipitrace with its standard error on a terminal."""

    def __init__(self, *arguments: str, cwd: Path) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [*IPITRACE, *arguments],
            cwd=cwd,
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=slave,
            text=True,
        )
        os.close(slave)
        self.drawn = ""

    def wait_for(self, pattern: str) -> None:
        """Read until the terminal shows `pattern`."""
        while not re.search(pattern, self.drawn):
            self.drawn += os.read(self._master, 4096).decode()

    def finish(self) -> tuple[int, str]:
        """(exit code, standard output), the terminal read to its end."""
        with contextlib.suppress(OSError):  # EIO: the other side is closed
            while more := os.read(self._master, 4096).decode():
                self.drawn += more
        os.close(self._master)
        stdout, _ = self.process.communicate(timeout=60)
        return self.process.returncode, stdout


@pytest.mark.usefixtures("host_is_left_as_it_was")
@pytest.mark.parametrize(("count", "how"), [(5000, ()), (15000, ("--no-trace",))])
def test_an_interrupted_run_keeps_what_was_finished(
    count: int, how: tuple[str, ...], tmp_path: Path
) -> None:
    ran = OnTerminal(
        *("run", *how, "--scenario", "self", "--scenario", "unicast-running"),
        *("--count", str(count), "-o", "here"),
        cwd=tmp_path,
    )
    ran.wait_for(r"\] +[4-7]\d%")
    ran.process.send_signal(signal.SIGINT)
    code, stdout = ran.finish()
    assert code == ExitCode.INTERRUPTED, ran.drawn
    assert "Traceback" not in ran.drawn
    assert "ipitrace: Interrupted." in ran.drawn
    run = run_json(tmp_path / "here")
    assert not run["complete"]
    assert run["failure"] == "Interrupted."
    assert [row["name"] for row in run["scenarios"]] == ["self", "unicast-running"]
    for row in run["scenarios"]:
        assert 1 <= row["repetitions"] < 6
        modes = [figures["mode"] for figures in row["repetition_figures"]]
        assert len({modes.count(mode) for mode in modes}) == 1
    assert "self" in stdout
    assert "Interrupted." in stdout


@pytest.mark.usefixtures("host_is_left_as_it_was")
def test_an_interrupt_before_the_first_storm(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*IPITRACE, "run", "--count", "200000", "-o", "here"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not list(tmp_path.iterdir()):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == ExitCode.INTERRUPTED, stderr
    assert "Traceback" not in stderr
    assert "ipitrace: Interrupted." in stderr


@pytest.mark.live("kvm")
def test_progress_is_drawn_on_a_terminal_and_wiped_away(tmp_path: Path) -> None:
    arguments = ("run", "--no-trace", "--scenario", "self", "--count", "20000", "-o")
    ran = OnTerminal(*arguments, "here", cwd=tmp_path)
    code, stdout = ran.finish()
    assert code == 0
    shares = [int(share) for share in re.findall(r"\] +(\d+)% self", ran.drawn)]
    assert shares
    assert shares == sorted(shares)
    assert shares[-1] <= 100
    assert "Wrote here/run.json" in ran.drawn
    assert ran.drawn.endswith("%\x20self\r\x1b[KWrote here/run.json\r\n")
    assert "%" not in stdout.partition("Cycles per IPI")[0]
    quiet = OnTerminal(*arguments, "there", "--json", cwd=tmp_path)
    assert quiet.finish()[0] == 0
    assert quiet.drawn == ""


@pytest.mark.live("kvm")
def test_no_progress_in_a_pipe(tmp_path: Path) -> None:
    done = ipi(
        *("run", "--no-trace", "--scenario", "self", "--count", "20000", "-o", "here"),
        cwd=tmp_path,
    )
    assert json.loads((tmp_path / "here/run.json").read_text())["duration_seconds"] > 1.0
    assert_fine(done)
    assert "\r" not in done.stdout
