# SPDX-License-Identifier: Apache-2.0
"""`ipitrace watch` beside VMs that end, and beside some that end before it looks."""

import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from commands import ENVIRONMENT, IPITRACE
from guests import micro_guest, until
from test_watch import next_interval, watching

pytestmark = pytest.mark.live


def test_a_vm_that_ended_keeps_its_pairs() -> None:
    with micro_guest() as guest, watching("--interval", 0.3, "--json") as watch:
        until(
            lambda: any(
                vm["pid"] == guest.pid and vm["ipis"]["total"] for vm in next_interval(watch)["vms"]
            )
        )
        guest.kill()
        ended: list[dict[str, object]] = []
        while not ended:
            told = next_interval(watch)["ended_vms"]
            ended = [one["vm"] for one in told if one["vm"]["pid"] == guest.pid]
    (vm,) = ended
    assert vm["ipis"]["total"] == vm["ipis"]["delta"] > 0  # type: ignore[index]
    pairs = {(p["sender"], p["target"]): p["ipis"]["total"] for p in vm["pairs"]}  # type: ignore[attr-defined]
    assert pairs == {(0, 1): vm["ipis"]["total"]}  # type: ignore[index]


def test_the_summary_has_the_pairs_of_vms_that_ended() -> None:
    with micro_guest() as guest, watching("--interval", 0.3) as watch:
        assert watch.stdout is not None
        until(lambda: f"pid:{guest.pid}" in watch.stdout.readline())  # type: ignore[union-attr]
        guest.kill()
        time.sleep(1)
        watch.send_signal(signal.SIGINT)
        said, complained = watch.communicate(timeout=60)
    assert complained == ""
    summary = " ".join(said.partition("whole run")[2].split())
    name = f"pid:{guest.pid} \\(pid {guest.pid}\\)"
    found = re.search(f"ended {name}: [^;]+; watched for [0-9.]+ s: ([0-9,]+) sends", summary)
    assert found, summary
    assert "0 -> 1 0xf0 fixed" in summary


def test_short_storms_between_two_looks_are_counted(tmp_path: Path) -> None:
    """Six VMs of one process, each for a moment; others' come on top."""
    n_measured, n_vms, warmup = 1200, 6, 100
    storm = ("run", "--no-trace", "--scenario", "unicast-running", "--repeat", n_vms, "-q")
    with watching("--interval", 5, "--json") as watch:
        first = next_interval(watch)
        words = [*IPITRACE, *map(str, storm), "--count", str(n_measured), "-o", "r"]
        ended = []
        with subprocess.Popen(words, cwd=tmp_path, env=ENVIRONMENT) as run:
            while run.poll() is None:
                ended += next_interval(watch)["ended_vms"]
            assert run.returncode == 0
        last = next_interval(watch)
        ended += last["ended_vms"]
        watch.send_signal(signal.SIGINT)
    of_run = [one for one in ended if one["vm"]["pid"] == run.pid]
    assert any(one["threads"] for one in of_run), "none came and went between two looks"
    assert sum(one["vm"]["sends"]["total"] for one in of_run) == n_measured + n_vms * warmup
    assert last["unseen"]["sends"]["total"] == first["unseen"]["sends"]["total"]
