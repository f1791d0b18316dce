# SPDX-License-Identifier: Apache-2.0
"""`ipitrace run` as people start it: what it prints, what it leaves, what it refuses."""

import json
import os
import re
from pathlib import Path

import pytest
from commands import ipi
from run_results import FEW, WROTE, assert_fine, assert_told, privately, run_json

from ipitrace.base.errors import ExitCode
from ipitrace.storm.micro.driver import unsupported
from ipitrace.words.scenarios import SCENARIOS, Pattern

pytestmark = pytest.mark.live


@pytest.mark.usefixtures("host_is_left_as_it_was")
def test_a_traced_run(tmp_path: Path) -> None:
    done = ipi("run", "--count", "60", "-o", "here", "--section", "observer", cwd=tmp_path)
    assert_fine(done)
    run = run_json(tmp_path / "here")
    rows = {row["name"]: row for row in run["scenarios"]}
    assert list(rows) == ["unicast-running", "unicast-halted", "self", "broadcast"]
    for row in rows.values():
        assert (row["sent"], row["delivered"], row["incomplete"]) == (60, 60, 0)
        assert row["repetitions"] == 6
        assert row["events_per_ipi"]["kvm_apic_ipi"] == {"sender": 1.0, "target": 0.0}
        assert row["name"] in done.stdout
    assert run["complete"]
    assert run["observer"]["repetitions"] == 6
    assert set(run["observer"]["costs"]) == set(rows)
    assert "Observer cost" in done.stdout
    assert run["command"][:5] == ["run", "--count", "60", "-o", "here"]
    assert done.stderr == "Wrote here/run.json\n"
    for table in ("guest_ipis", "host_events", "spans"):
        assert run["tables"][table]["rows"] > 0
    assert run["tables"]["spans"]["rows"] == 2 * 4 * 60  # of the modes stages and evidence


@pytest.mark.live("kvm")
def test_json_is_one_document_and_the_file(tmp_path: Path) -> None:
    done = ipi("run", "--no-trace", *FEW, "--json", "-o", "here", cwd=tmp_path)
    assert_fine(done, quiet=True)
    assert json.loads(done.stdout) == run_json(tmp_path / "here")
    assert done.stdout == (tmp_path / "here" / "run.json").read_text()


def test_json_of_a_traced_run(tmp_path: Path) -> None:
    done = ipi("run", *FEW, "--json", "-o", "here", cwd=tmp_path)
    assert_fine(done, quiet=True)
    assert json.loads(done.stdout) == run_json(tmp_path / "here")


@pytest.mark.live("kvm")
def test_quiet_prints_nothing(tmp_path: Path) -> None:
    done = ipi("run", "--no-trace", *FEW, "-q", "-o", "here", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    run_json(tmp_path / "here")


@pytest.mark.live("kvm")
def test_the_default_directory(tmp_path: Path) -> None:
    done = ipi("run", "--no-trace", *FEW, cwd=tmp_path)
    assert done.returncode == 0
    (made,) = tmp_path.iterdir()
    assert re.fullmatch(r"ipitrace-\d{8}-\d{6}", made.name)
    assert done.stderr == f"Wrote {made.name}/run.json\n"


@pytest.mark.live("kvm")
def test_the_whole_table_of_scenarios(tmp_path: Path) -> None:
    done = ipi(
        *("run", "--no-trace", "--scenario", "all", "--count", "20", "-o", "here"), cwd=tmp_path
    )
    assert_fine(done)
    rows = run_json(tmp_path / "here")["scenarios"]
    assert [row["name"] for row in rows] == [scenario.name for scenario in SCENARIOS]
    cannot = {row["name"] for row in rows if row["status"] == "unsupported"}
    assert cannot == {
        scenario.name
        for scenario in SCENARIOS
        if unsupported(scenario) or scenario.pattern == Pattern.MULTICAST  # of four vCPUs
    }
    for row in rows:
        if row["name"] in cannot:
            assert f"{row['name']}: {row['reason']}" in " ".join(done.stdout.split())
        else:
            senders = 2 if row["pattern"] == Pattern.RING else 1
            targets = row["targets"] if row["pattern"] != Pattern.RING else 1
            assert row["sent"] == 20 * senders
            assert row["delivered"] == row["sent"] * targets


@pytest.mark.live("kvm")
def test_more_vcpus_than_cpus_is_said(tmp_path: Path) -> None:
    n = max(len(os.sched_getaffinity(0)) + 1, 4)
    done = ipi(
        *("run", "--no-trace", "--vm", f"micro:{n}", "--scenario", "broadcast", "--count", "1"),
        *("-o", "here"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    run = run_json(tmp_path / "here")
    assert run["host"]["pinning"]["overcommitted"]
    assert run["guest"]["pinned_cpus"] is None
    (row,) = run["scenarios"]
    assert (row["sent"], row["delivered"], row["targets"]) == (1, n - 1, n - 1)
    assert "measure the scheduler" in " ".join(done.stdout.split())


# What cannot be asked for.

USAGE = {
    "unknown scenario": (("--scenario", "unicast-runing"), ("Did you mean unicast-running",)),
    "outlandish scenario": (("--scenario", "x"), ("There is no scenario 'x'", "broadcast")),
    "no count": (("--count", "0"), ("--count 0 is out of range", "1 to")),
    "negative count": (("--count", "-5"), ("--count -5 is out of range",)),
    "too many in all": (
        ("--scenario", "all", "--repeat", "1000"),
        ("and a recording holds at most 4000",),
    ),
    "huge count": (("--count", str(10**12)), (f"--count {10**12} is out of range",)),
    "count beyond any integer": (("--count", str(10**40)), ("is out of range",)),
    "count in words": (("--count", "abc"), ("abc", "--help")),
    "negative pace": (("--pace", "-1"), ("--pace -1 is out of range",)),
    "pace in words": (("--pace", "slow"), ("slow",)),
    "other guest": (("--vm", "guestX"), ("There is no VM 'guestX'", "--vm micro")),
    "guest without a number": (("--vm", "micro:"), ("micro:",)),
    "one vcpu": (("--vm", "micro:1"), ("cannot have 1 vCPUs",)),
    "no vcpu": (("--vm", "micro:0"), ("cannot have 0 vCPUs",)),
    "too many vcpus": (("--vm", "micro:999"), ("cannot have 999 vCPUs", "2 to 64")),
    "unknown option": (("--fast",), ("--fast",)),
    "stray word": (("fast",), ("fast",)),
    "unknown fault": (("--inject", "flood"), ("flood",)),
}


@pytest.mark.live("kvm")
@pytest.mark.parametrize("what", USAGE)
def test_a_bad_request(what: str, tmp_path: Path) -> None:
    arguments, words = USAGE[what]
    done = ipi("run", "--no-trace", *arguments, cwd=tmp_path)
    assert_told(done, ExitCode.USAGE, *words)
    assert not list(tmp_path.iterdir())


@pytest.mark.live("kvm")
def test_an_unknown_verb(tmp_path: Path) -> None:
    assert_told(ipi("rum", cwd=tmp_path), ExitCode.USAGE, "rum")


@pytest.mark.live("kvm")
def test_a_scenario_that_cannot_run_here(tmp_path: Path) -> None:
    done = ipi("run", "--no-trace", "--scenario", "multicast-running", cwd=tmp_path)
    assert_told(
        done,
        ExitCode.ENVIRONMENT,
        "'multicast-running' cannot run here",
        "These scenarios can run: unicast-running, unicast-halted, ",
        "ipitrace scenarios",
    )


# Where the recording goes.


@pytest.mark.live("kvm")
def test_a_recording_is_replaced_only_by_force(tmp_path: Path) -> None:
    assert ipi("run", "--no-trace", *FEW, "-o", "here", cwd=tmp_path).returncode == 0
    old = (tmp_path / "here" / "run.json").read_text()
    done = ipi("run", "--no-trace", *FEW, "-o", "here", cwd=tmp_path)
    assert_told(done, ExitCode.USAGE, "already holds a recording", "--force")
    assert (tmp_path / "here" / "run.json").read_text() == old
    assert ipi("run", "--no-trace", *FEW, "-o", "here", "--force", cwd=tmp_path).returncode == 0
    assert run_json(tmp_path / "here") != json.loads(old)
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


@pytest.mark.live("kvm")
def test_a_file_is_no_place_for_a_recording(tmp_path: Path) -> None:
    (tmp_path / "here").write_text("old")
    done = ipi("run", "--no-trace", *FEW, "-o", "here", cwd=tmp_path)
    assert_told(done, ExitCode.USAGE, "is not a directory")
    assert (tmp_path / "here").read_text() == "old"


@pytest.mark.live("kvm")
def test_a_run_that_fails_leaves_a_users_empty_directory(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    done = ipi("run", "--no-trace", "--scenario", "multicast-running", "-o", "mine", cwd=tmp_path)
    assert done.returncode == ExitCode.ENVIRONMENT
    assert (tmp_path / "mine").is_dir()


@pytest.mark.live("kvm", "root")
def test_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    full = "mount -t tmpfs -o size=8k none small; head -c 6000 /dev/zero > small/full"
    done = ipi(
        *("run", "--no-trace", *FEW, "-q", "-o", "small/here"),
        cwd=tmp_path,
        through=privately(full),
    )
    assert_told(done, ExitCode.ENVIRONMENT, "cannot be written", "o space left", "Free space")


@pytest.mark.live("kvm")
@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "--no-trace", *FEW, "-o", "here"),
        ("run", "--no-trace", *FEW, "-o", "here", "--json"),
        ("scenarios",),
        ("--help",),
        ("--version",),
    ],
)
def test_a_reader_that_left(arguments: tuple[str, ...], tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = ipi(*arguments, cwd=tmp_path, stdout=writing)
    finally:
        os.close(writing)
    assert done.returncode == ExitCode.OK
    assert re.fullmatch(f"({WROTE.pattern})?", done.stderr), done.stderr
    if "run" in arguments:
        run_json(tmp_path / "here")


@pytest.mark.live("kvm")
def test_a_long_run_whose_reader_is_head(tmp_path: Path) -> None:
    command = 'set -o pipefail; "$@" | head -1'
    done = ipi(
        *("run", "--no-trace", *FEW, "-o", "here"),
        cwd=tmp_path,
        through=("bash", "-c", command, "sh"),
    )
    assert_fine(done)
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.live("kvm")
def test_the_scenarios_are_listed(tmp_path: Path) -> None:
    done = ipi("scenarios", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "unicast-running" in done.stdout
    assert not list(tmp_path.iterdir())
