# SPDX-License-Identifier: Apache-2.0
"""The process that preempts a target: what it does on the host whatever becomes of ipitrace."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from guests import until

import ipitrace

pytestmark = [
    pytest.mark.live("root", "kvm"),
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs"),
]
LOOK_S = 3.0
ENDLESS = 400_000
"""IPIs; far more than any test waits for."""


@contextlib.contextmanager
def run(tmp_path: Path, count: int) -> Iterator[tuple["subprocess.Popen[bytes]", int]]:
    """A run of a preempted scenario in mid-storm, and its preemptor's process."""
    words = ("run", "--no-trace", "--scenario", "unicast-preempted", "--count", str(count))
    with subprocess.Popen(
        [sys.executable, "-m", "ipitrace", *words, "--repeat", "1", "-o", str(tmp_path / "r")],
        env={**os.environ, "PYTHONPATH": str(Path(ipitrace.__file__).parents[1])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            yield process, until(lambda: preemptor_of(process))
        finally:
            process.send_signal(signal.SIGCONT)
            process.kill()


def preemptor_of(process: "subprocess.Popen[bytes]") -> int | None:
    """Its preemptor, once it takes the CPU in earnest."""
    assert process.poll() is None
    for child in psutil.Process(process.pid).children():
        with contextlib.suppress(psutil.Error, OSError):
            found = any("preemptor_process" in word for word in child.cmdline())
            if found and policy(child.pid) == os.SCHED_FIFO and cpu_s(child.pid) > 0.2:
                return child.pid
    return None


def policy(pid: int) -> int:
    return os.sched_getscheduler(pid)


def cpu_s(pid: int) -> float:
    """CPU time used so far: utime and stime of /proc/PID/stat."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def gone(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def used_share(pid: int) -> float:
    before, started_s = cpu_s(pid), time.monotonic()
    time.sleep(LOOK_S)
    return (cpu_s(pid) - before) / (time.monotonic() - started_s)


def test_while_ipitrace_is_stopped_it_rests_at_normal_priority(tmp_path: Path) -> None:
    with run(tmp_path, ENDLESS) as (process, preemptor):
        process.send_signal(signal.SIGSTOP)
        until(lambda: policy(preemptor) == os.SCHED_OTHER, 30)
        assert used_share(preemptor) < 0.05
        assert policy(preemptor) == os.SCHED_OTHER
        process.send_signal(signal.SIGCONT)
        until(lambda: policy(preemptor) == os.SCHED_FIFO, 30)
        before = cpu_s(preemptor)
        until(lambda: cpu_s(preemptor) > before + 0.2, 30)


def test_a_run_that_was_stopped_goes_on_and_ends(tmp_path: Path) -> None:
    with run(tmp_path, 10_000) as (process, _preemptor):
        process.send_signal(signal.SIGSTOP)
        time.sleep(LOOK_S)
        process.send_signal(signal.SIGCONT)
        assert process.stderr is not None
        said = process.stderr.read().decode()
        assert process.wait() in {0, 4}, said
        assert "Traceback" not in said


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_it_ends_with_ipitrace(number: int, tmp_path: Path) -> None:
    with run(tmp_path, ENDLESS) as (process, preemptor):
        process.send_signal(number)
        until(lambda: gone(preemptor), 30)


def test_it_ends_with_an_ipitrace_that_is_killed_while_it_is_stopped(tmp_path: Path) -> None:
    with run(tmp_path, ENDLESS) as (process, preemptor):
        process.send_signal(signal.SIGSTOP)
        until(lambda: policy(preemptor) == os.SCHED_OTHER, 30)
        process.kill()
        until(lambda: gone(preemptor), 30)


def test_a_preemptor_that_is_killed_is_told(tmp_path: Path) -> None:
    with run(tmp_path, ENDLESS) as (process, preemptor):
        os.kill(preemptor, signal.SIGKILL)
        assert process.stderr is not None
        said = process.stderr.read().decode()
        assert process.wait() == 4, said
        assert "The process that preempts the target ended early, by signal 9." in said
