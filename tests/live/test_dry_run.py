# SPDX-License-Identifier: Apache-2.0
"""`ipitrace run --dry-run` says what the run then does, and does nothing; and the limits hold."""

import json
import os
import signal
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from checks import assert_sound
from commands import ipi
from guests import micro_guest
from numpy.typing import NDArray

from ipitrace.base.errors import ExitCode
from ipitrace.host.cpus import Pinning
from ipitrace.measure.guests import Guest
from ipitrace.measure.request import WARMUP, RunRequest
from ipitrace.measure.run import run
from ipitrace.recording.result import RunLimits
from ipitrace.storm.linux.driver import LinuxGuest
from ipitrace.storm.linux.helper import GuestCpus, HelperStatus, Module
from ipitrace.storm.transport.local import LocalShell
from ipitrace.words.scenarios import select_scenarios

SELF = ("--scenario", "self", "--count", "60")


def dry(*arguments: str, cwd: Path) -> dict[str, Any]:
    done = ipi("run", "--dry-run", "--json", *arguments, cwd=cwd)
    assert done.returncode == ExitCode.OK, done.stderr
    assert list(cwd.iterdir()) == []
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize(
    ("name", "senders", "targets"),
    [("ring", 4, 1), ("broadcast", 1, 3), ("multicast-running", 1, 2), ("broadcast-self", 1, 4)],
)
def test_a_dry_run_knows_senders_and_targets(
    tmp_path: Path, name: str, senders: int, targets: int
) -> None:
    said = dry(
        "--vm",
        "micro:4",
        "--count",
        "50",
        "--repeat",
        "1",
        "--no-trace",
        "--scenario",
        name,
        cwd=tmp_path,
    )
    (storms,) = said["sending"]["scenarios"]
    assert storms["targets"] == targets
    assert storms["sends"] == senders * (50 + WARMUP)


@pytest.mark.live
def test_a_dry_run_says_what_the_run_does(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    said = dry(*SELF, cwd=empty)
    done = ipi("run", *SELF, "-o", "r", cwd=tmp_path)
    assert done.returncode == ExitCode.OK, done.stderr
    found = json.loads((tmp_path / "r/run.json").read_text())
    hooks, programs = found["observer"]["hooks"], said["attaching"]["programs"]
    assert programs.items() <= hooks.items()
    for name in hooks.keys() - programs.keys():
        assert "tracefs is not mounted" in said["attaching"]["left_out"][name]
    (storms,) = said["sending"]["scenarios"]
    (row,) = found["scenarios"]
    figures = row["repetition_figures"]
    assert said["sending"]["storms"] == len(figures)
    assert storms["sends"] == sum(f["sent"] + row["warmup"] for f in figures)
    assert storms["pace_cycles"] == row["pace_cycles"]
    assert all(right["lacking"] is None for right in said["rights"])


@pytest.mark.live
def test_a_dry_run_needs_no_right_to_load_anything(tmp_path: Path) -> None:
    """Where the kernel refuses every program and every mount, it says the same."""
    capabilities = ("-sys_admin", "-bpf", "-perfmon")
    without = ("setpriv", f"--bounding-set={','.join(capabilities)}", "--inh-caps=-all")
    done = ipi("run", "--dry-run", cwd=tmp_path, through=without)
    assert done.returncode == ExitCode.OK, done.stderr
    assert "Dry run: nothing was done." in done.stdout
    assert "kvm_apic_ipi (raw)" in done.stdout
    assert "LACKS CAP_BPF and CAP_PERFMON" in " ".join(done.stdout.split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.live
def test_a_dry_run_does_not_connect_to_the_guest(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with socket.socket(socket.AF_UNIX) as agent, micro_guest() as guest:
        agent.bind(str(tmp_path / "qga"))
        agent.listen()
        agent.setblocking(False)  # noqa: FBT003
        way = f"qga://{tmp_path}/qga"
        said = dry("--vm", f"pid:{guest.pid}", "--via", way, cwd=empty)
        with pytest.raises(BlockingIOError):  # nobody is waiting there
            agent.accept()
        assert said["guest"]["pid"] == guest.pid
        assert set(said["guest"]["threads"]) <= set(guest.tids)
        assert way in said["guest"]["what"]
        assert any("ipitrace-storm run --pattern unicast" in step for step in said["inside"])
        assert "defaults for a guest that ipitrace did not start" in said["sending"]["limits"]
        assert all(s["most_per_s"] <= 10_000 for s in said["sending"]["scenarios"])
        refused = ipi(
            *("run", "--dry-run", "--vm", f"pid:{guest.pid}", "--via", way, "--count", "1000000"),
            cwd=empty,
        )
    assert refused.returncode == ExitCode.USAGE
    assert "--max-time is 60 s" in refused.stderr


@pytest.mark.live("kvm")
def test_a_rate_is_kept(tmp_path: Path) -> None:
    """By the guest's own stamps: no two sends are closer than the rate allows."""
    limits = ("--max-rate", "2000", "--max-time", "100")
    command = ("run", "--no-trace", *SELF, "--pace", "0", *limits)
    done = ipi(*command, "-o", "r", cwd=tmp_path)
    assert done.returncode == ExitCode.OK, done.stderr
    said = " ".join(done.stdout.split())
    assert "at most 2000 sends per second (--max-rate) and 100 s of storms" in said
    found = json.loads((tmp_path / "r/run.json").read_text())
    assert_sound(found)
    assert found["limits"] == {"max_rate_hz": 2000.0, "max_time_s": 100.0, "by_default": False}
    sends = pq.read_table(tmp_path / "r/guest_ipis.parquet").to_pydict()
    stamps = np.array(sends["send_tsc"])[np.array(sends["repetition"]) == 0]
    assert np.diff(stamps).min() / found["clock"]["tsc_hz"] >= 0.999 / 2000


class Nowhere:
    """A recording that is not kept."""

    def append(
        self, table: str, columns: Mapping[str, NDArray[Any]], meanings: Mapping[str, str]
    ) -> None:
        """Forget it."""


@pytest.fixture
def endless(tmp_path: Path) -> LinuxGuest:
    """A Linux guest's driver whose helper says how it was called, and never ends."""
    helper = tmp_path / "ipitrace-storm"
    helper.write_text(
        f'#!/bin/sh\necho "$@" >{tmp_path}/asked\necho $$ >{tmp_path}/pid\nexec sleep 1000\n'
    )
    helper.chmod(0o755)
    status = HelperStatus(2, "1", Module(loaded=True), "6.12", 2, (0, 1), "x2apic", 2_000_000, {})
    cpus = GuestCpus((0, 1), native=False, emulated=None)
    return LinuxGuest(LocalShell(), str(helper), status, None, cpus)


@pytest.mark.live("root")
def test_a_storm_in_a_guest_that_is_not_ours_is_ended(endless: LinuxGuest, tmp_path: Path) -> None:
    pinning = Pinning(None, overcommitted=False, why="a test")
    guest = Guest(endless, pinning, None, "a test", frozenset({os.getpid()}), shares_tsc=False)
    request = RunRequest(
        select_scenarios(["unicast-running"]), 10, 0, trace=False, repeat=1, max_time_s=0.5
    )
    result, failure = run(request, guest, Nowhere(), lambda _scenario, _share: None)
    assert failure is not None
    assert failure.exit_code == ExitCode.UNTRUSTWORTHY
    assert "took longer than --max-time, 0.5 s" in failure.message
    assert result.limits == RunLimits(10_000.0, 0.5, by_default=False)
    # 10,000 a second, of a TSC of 2 GHz, although a pace of 0 was asked for
    assert "--pace-cycles 200000" in (tmp_path / "asked").read_text()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGCONT)
