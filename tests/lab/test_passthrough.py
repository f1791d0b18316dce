# SPDX-License-Identifier: Apache-2.0
"""Passthrough IPI on the emulated Intel host: the parameter off, then on."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lab_result import LabResult

from ipitrace.recording.reader import read_run
from lab.common.cache import cache_dir
from lab.passthrough.jobs import HARDSHIPS, LINUX_PAIRS, MANY, PAIRS, REPETITIONS

pytestmark = pytest.mark.lab("passthrough")

CHECKOUT = Path(__file__).parents[2]
OFF, ON = zip(*PAIRS, strict=True)
FEW = 0.05  # the emulated host's timer and the ends of a storm add a few exits
TO_ANOTHER = [name for name in ON if name != "self-passthrough"]
SENDER_EXITS = {
    "Undisturbed": (0, 0.2),
    "TargetMoves": (0, 0.5),
    "SenderMoves": (0, 0.5),
    "Inhibited": (1, 1.2),  # the ICR is intercepted again
    "InhibitedNowAndThen": (0.1, 1.2),
    "PluggedIn": (0, 0.2),
}
"""Least and most per IPI; the emulated host's timer and the moves themselves cause some."""
MANY_IPIS = 5000
LINUX_IPIS = 60
NEVER_HALTED = ["unicast-running-passthrough", "broadcast-passthrough"]


@pytest.fixture(scope="module")
def output() -> Path:
    """What `make lab-passthrough` leaves."""
    artifacts = os.environ.get("IPITRACE_ARTIFACTS") or cache_dir() / "results"
    directory = Path(artifacts).resolve() / "passthrough"
    options = ["--many", str(MANY_IPIS), "--linux", str(LINUX_IPIS), "--hardships", "--risk"]
    command = [sys.executable, "-m", "lab.passthrough", *options, "--output", directory]
    done = subprocess.run(
        command, cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=7200
    )
    assert done.returncode == 0, f"{done.stderr}\nleft in {directory}"
    (directory / "compared.txt").write_text(done.stdout)
    return directory


@pytest.fixture(scope="module")
def off(output: Path) -> LabResult:
    return LabResult(output / "off", (output / "off" / "stdout.txt").read_text())


@pytest.fixture(scope="module")
def on(output: Path) -> LabResult:
    return LabResult(output / "on", (output / "on" / "stdout.txt").read_text())


def test_both_runs_are_whole_and_differ_in_the_parameter(off: LabResult, on: LabResult) -> None:
    name = "kvm_intel.passthrough_ipi"
    assert off.run.host.fingerprint.kvm_parameters[name] == "N"
    assert on.run.host.fingerprint.kvm_parameters[name] == "Y"
    kernels = {r.run.host.fingerprint.kernel_version for r in (off, on)}
    assert len(kernels) == 1
    for result, names in ((off, OFF), (on, ON)):
        assert result.run.complete
        assert result.run.untrustworthy == ()
        assert [s.name for s in result.run.scenarios] == list(names)
        assert {s.status for s in result.run.scenarios} == {"measured"}


def test_no_ipi_is_lost(on: LabResult) -> None:
    assert on.run.losses.incomplete_ipis == 0
    for scenario in on.run.scenarios:
        assert scenario.delivered == scenario.sent * scenario.targets


@pytest.mark.parametrize("name", [name for name in OFF if name != "self"])
def test_off_each_send_exits(off: LabResult, name: str) -> None:
    assert off.exits(name, "sender", "MSR_WRITE") == pytest.approx(1, abs=0.005)


@pytest.mark.parametrize("name", ON)
def test_on_no_send_exits(on: LabResult, name: str) -> None:
    assert on.exits(name, "sender", "MSR_WRITE") == 0
    # While IPIs are far apart, the host's timer comes in between.
    own = on.exits(name, "sender", "EXTERNAL_INTERRUPT")
    assert on.exits(name, "sender", "exits") - own < FEW
    paths = on.scenario(name).paths or {}
    assert paths.keys() <= {"exitless", "unknown"}
    # A repetition in which the kernel skipped a program proves nothing.
    skipped = sum(n or 0 for n in on.run.losses.recursion_misses.values())
    assert paths["exitless"] >= 1 - skipped / REPETITIONS


@pytest.mark.parametrize("name", NEVER_HALTED)
def test_a_target_that_runs_never_exits(on: LabResult, name: str) -> None:
    assert on.exits(name, "target", "exits") < FEW


@pytest.mark.parametrize("name", ["unicast-halted-passthrough", "unicast-blocked-passthrough"])
def test_a_target_in_hlt_is_woken_each_time(on: LabResult, name: str) -> None:
    assert on.exits(name, "target", "HLT") == pytest.approx(1, abs=0.02)


def test_a_blocked_target_is_woken_by_the_wakeup_vector(on: LabResult) -> None:
    scenario = on.scenario("unicast-blocked-passthrough")
    assert scenario.late_posts is not None
    assert scenario.late_posts["PIW"] >= scenario.sent / 2


def test_a_preempted_target_is_not_notified_and_loses_nothing(
    off: LabResult, on: LabResult
) -> None:
    for result, name in (
        (off, "unicast-preempted"),
        (on, "unicast-preempted-passthrough"),
    ):
        scenario = result.scenario(name)
        assert scenario.delivered == scenario.sent
        assert scenario.stages is not None
        assert "sched_in" in {step.stage for step in scenario.stages.steps}
    posts = on.scenario("unicast-preempted-passthrough").late_posts
    assert posts is not None
    assert posts["PIN"] < on.scenario("unicast-preempted-passthrough").sent / 2


@pytest.mark.parametrize("name", [*MANY, "unicast-preempted-passthrough"])
def test_none_of_many_is_lost(output: Path, name: str) -> None:
    preempted = name not in MANY
    run = read_run(output / ("many-preempted" if preempted else "many") / name)
    (scenario,) = run.scenarios
    assert run.complete
    assert run.guest.n_vcpus == (2 if preempted else 4)
    assert scenario.sent == MANY_IPIS
    assert scenario.targets == (3 if name.startswith("broadcast") else 1)
    assert scenario.delivered + scenario.coalesced == MANY_IPIS * scenario.targets
    assert scenario.incomplete == 0


@pytest.fixture(scope="module")
def linux(output: Path) -> tuple[LabResult, LabResult]:
    """What was measured in a Linux guest, off and on."""
    places = [output / f"linux-{name}" for name in ("off", "on")]
    off, on = (LabResult(place, (place / "stdout.txt").read_text()) for place in places)
    return off, on


@pytest.mark.parametrize("pair", LINUX_PAIRS)
def test_a_linux_guest_sends_without_an_exit(
    linux: tuple[LabResult, LabResult], pair: tuple[str, str]
) -> None:
    for result, name, exits in zip(linux, pair, (1, 0), strict=True):
        scenario = result.scenario(name)
        assert scenario.status == "measured", scenario.reason
        assert scenario.delivered == scenario.sent
        # The guest's timer is an MSR write, too; the path is of the send alone.
        assert result.exits(name, "sender", "MSR_WRITE") == pytest.approx(exits, abs=2 * FEW)
        assert scenario.paths == {"msr-fastpath" if exits else "exitless": 1.0}


def test_a_cpu_that_was_away_sends_as_before(linux: tuple[LabResult, LabResult]) -> None:
    for result, exits in zip(linux, (1, 0), strict=True):
        told = (result.output / "hotplug.txt").read_text()
        assert told.startswith("0\n0-1\n" * 3)
        assert ("IPIs are passed through" in told) == (exits == 0)
        (scenario,) = read_run(result.output / "after-hotplug").scenarios
        assert scenario.delivered == scenario.sent
        assert scenario.exits is not None
        assert scenario.exits.sender is not None
        assert scenario.exits.sender.get("MSR_WRITE", 0) == pytest.approx(exits, abs=2 * FEW)


def test_ipitrace_storm_knows_whose_the_icr_is(linux: tuple[LabResult, LabResult]) -> None:
    off, on = ((result.output / "install.txt").read_text() for result in linux)
    assert "the guest's kernel does not use Passthrough IPI" in off
    assert "the ICR is the host's" not in off
    assert "the guest's kernel uses Passthrough IPI: the ICR is the host's" in on
    assert "does not use Passthrough IPI" not in on


@pytest.fixture(scope="module")
def hardships(output: Path) -> dict[str, dict[str, Any]]:
    """What hardships.py told of each case."""
    lines = (output / "hardships" / "stdout.txt").read_text().splitlines()
    return {case["case"]: case for case in map(json.loads, lines)}


@pytest.mark.parametrize("target", ["", ", halted"])
@pytest.mark.parametrize("case", list(SENDER_EXITS))
def test_no_hardship_loses_an_ipi(
    hardships: dict[str, dict[str, Any]], case: str, target: str
) -> None:
    told = hardships[case + target]
    assert (told["sent"], told["delivered"], told["incomplete"]) == (HARDSHIPS, HARDSHIPS, 0)
    least, most = SENDER_EXITS[case]
    assert least * HARDSHIPS <= told["sender_exits"] <= most * HARDSHIPS
    if case not in {"Undisturbed", "Inhibited"}:
        assert told["disturbed"] >= 1


def test_what_cannot_be_posted_goes_through_the_other_msr(
    hardships: dict[str, dict[str, Any]],
) -> None:
    """INIT and SIPI start the targets of every case; this is an NMI."""
    said = hardships["NMI by the other MSR"]["guest_said"]
    assert "took exception 2 " in said
    assert "on vCPU 1" in said


@pytest.mark.parametrize("row", ["PIN", "PIW", "NPI", "RES", "CAL", "IWI", "LOC", "NMI"])
def test_a_guest_s_writes_reach_cpus_that_never_ran_it(output: Path, row: str) -> None:
    told = (output / "risk" / "stdout.txt").read_text()
    nothing, *others = (line for line in told.splitlines() if " to all CPUs: " in line)
    assert nothing.startswith("nothing to ")
    grown = [re.search(rf"{row}\+(\d+)/(\d+)", line) for line in (nothing, *others)]
    without, *most = [min(map(int, found.groups())) if found else 0 for found in grown]
    assert max(most) > without + 10
    assert told.count("its own IPIs: 100 of 100") == told.count("its own IPIs: ")


def test_run_and_watch_tell_of_what_came_to_other_cpus(output: Path) -> None:
    run = (output / "risk" / "run.txt").read_text()
    assert re.search(r"notifications on CPUs that never ran this VM: PIN \d+ on CPU 3", run)
    intervals = map(json.loads, (output / "risk" / "watch.jsonl").read_text().splitlines())
    assert all(interval["late_posts"]["elsewhere"]["PIN"]["3"] > 0 for interval in intervals)


def test_compare_proves_the_exit_gone(output: Path) -> None:
    compared = (output / "compared.txt").read_text()
    gone = re.findall(r"exits\.sender\.MSR_WRITE +1\.000 +0\.000 +-1\.000 +better", compared)
    assert len(gone) >= len(NEVER_HALTED)  # where the name fits its column
    assert "path.exitless" in compared
