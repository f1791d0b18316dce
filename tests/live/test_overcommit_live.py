# SPDX-License-Identifier: Apache-2.0
"""vCPUs that share CPUs: their waiting against the kernel's account, and who ran instead."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from checks import assert_sound
from commands import ipi
from run_results import run_json

pytestmark = [
    pytest.mark.live("root", "kvm"),
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs"),
]

SPIN = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(15, b'spinner', 0, 0, 0)\n"
    "os.sched_setaffinity(0, {int(sys.argv[1])}); print(flush=True)\nwhile True: pass"
)
"""Prints a line once it has its name (PR_SET_NAME) and its CPU."""


@contextlib.contextmanager
def spinner(cpu: int) -> Iterator[int]:
    """A process that does nothing but use this CPU, and its id."""
    words = [sys.executable, "-I", "-S", "-c", SPIN, str(cpu)]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"\n"
            yield process.pid
        finally:
            process.kill()


def measured(folder: Path, *words: str, code: int = 0) -> dict[str, Any]:
    done = ipi("run", "--vm", "micro:4", *words, "-o", str(folder), "--force", cwd=folder.parent)
    assert done.returncode == code, done.stderr
    run = run_json(folder)
    assert_sound(run)
    return run


def side(row: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return next(each for each in row["overcommit"]["sides"] if each["side"] == name)


def shares(found: Mapping[str, Any]) -> dict[tuple[str, str], float]:
    return {(each["kind"], each["name"]): each["share"] for each in found["occupants"]}


def test_targets_wait_as_long_as_the_kernel_says(tmp_path: Path) -> None:
    names = ("unicast-overcommit", "broadcast-overcommit")
    words = [word for name in names for word in ("--scenario", name)]
    run = measured(tmp_path / "r", *words, "--repeat", "2", "--count", "80")
    assert run["untrustworthy"] == []
    for row, targets in zip(run["scenarios"], (1, 3), strict=True):
        found = row["overcommit"]
        assert (row["sent"], row["delivered"]) == (80, 80 * targets)
        assert found["vcpus_per_cpu"] == 2
        assert found["cpus"] == found["cpus"][:2] * 2
        assert found["switched_out_s"] == pytest.approx(found["run_delay_s"], rel=0.1)
        assert found["run_delay_s"] > 0.1
        target, sender = side(row, "target"), side(row, "sender")
        assert (sender["ipis"], target["ipis"]) == (80, 80 * targets)
        assert 0.1 < target["off_at_send"] <= target["waited"]
        assert sender["waited"] > 0.1
        for each in (target, sender):
            assert sum(shares(each).values()) == pytest.approx(1)
        # The other vCPU of the same CPU is among those that ran instead.
        assert shares(sender)["vcpu", "vCPU 2"] > 0.1
        # D is either that of a running target, or mostly the wait for the CPU.
        running, waiting = found["deliver_running"], found["deliver_waiting"]
        assert waiting["p50"] > 0.5 * target["waited_cycles"]["p50"]
        if running is not None:
            assert running["count"] + waiting["count"] == target["ipis"]
            assert running["p50"] * 3 < waiting["p50"]
    notes = [one["kind"] for one in run["disturbances"]]
    assert "waited" not in notes
    assert "moved" not in notes


def test_a_process_on_the_targets_cpu_is_named(tmp_path: Path) -> None:
    words = ("--scenario", "unicast-overcommit", "--repeat", "1", "--count", "40")
    (row,) = measured(tmp_path / "r", *words)["scenarios"]
    cpu = row["overcommit"]["cpus"][1]
    with spinner(cpu) as pid:
        (row,) = measured(tmp_path / "r", *words)["scenarios"]
    found = shares(side(row, "target"))
    spun, shared = found["process", f"spinner (pid {pid})"], found["vcpu", "vCPU 3"]
    # The scheduler gives both the same share, or with autogroups the process that of two vCPUs.
    assert spun > 0.15
    assert shared > 0.05
    assert spun + shared > 0.5
    assert ("process", f"spinner (pid {pid})") not in shares(side(row, "sender"))


@pytest.mark.skipif(len(os.sched_getaffinity(0)) > 32, reason="64 vCPUs have a CPU each")
def test_other_scenarios_are_warned_of_overcommit(tmp_path: Path) -> None:
    n = 2 * len(os.sched_getaffinity(0))
    words = ("run", "--no-trace", "--vm", f"micro:{n}", "--repeat", "1", "--count", "3")
    both = ("--scenario", "unicast-overcommit", "--scenario", "broadcast-halted")
    done = ipi(*words, *both, "--section", "losses", "-o", "here", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "the numbers of broadcast-halted measure the scheduler" in said
    (_, row) = sorted(run_json(tmp_path / "here")["scenarios"], key=lambda r: r["name"])
    assert row["overcommit"]["sides"] is None
    assert row["absent"]["overcommit.sides"] == "nothing was traced"
