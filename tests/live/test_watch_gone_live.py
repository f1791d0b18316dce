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


def test_short_storms_between_two_looks_are_told(tmp_path: Path) -> None:
    """Six VMs, each for a moment; others' come on top."""
    n_measured, n_vms, warmup = 1200, 6, 100
    storm = ("run", "--no-trace", "--scenario", "unicast-running", "--repeat", n_vms, "-q")
    with watching("--interval", 5, "--json") as watch:
        next_interval(watch)
        words = [*IPITRACE, *map(str, storm), "--count", str(n_measured), "-o", "r"]
        with subprocess.Popen(words, cwd=tmp_path, env=ENVIRONMENT) as run:
            pid = run.pid
            taken: list[int] = []
            while run.poll() is None:
                interval = next_interval(watch)
                taken += [
                    e["vm"]["sends"]["total"]
                    for e in interval["ended_vms"]
                    if e["vm"]["pid"] == pid
                ]
            assert run.returncode == 0
        interval = next_interval(watch)
        taken += [e["vm"]["sends"]["total"] for e in interval["ended_vms"] if e["vm"]["pid"] == pid]
        watch.send_signal(signal.SIGINT)
    unseen = interval["unseen"]
    assert len(taken) < n_vms, "none came and went between two looks"
    assert unseen["threads"]["total"] >= n_vms - len(taken)  # a target need not enter anew
    assert unseen["sends"]["total"] + sum(taken) >= 0.95 * (n_measured + n_vms * warmup)
    assert unseen["sends"]["total"] >= unseen["gone_sends"]["total"] > 0
