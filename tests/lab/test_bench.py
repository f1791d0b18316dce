# SPDX-License-Identifier: Apache-2.0
"""What watching adds to an IPI, on the emulated Intel host: ipitrace beside other tools.

`make test-lab-bench` boots the host; the tests without a marker need none.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from conftest import CHECKOUT, run_lab
from lab_result import LabResult

from bench.added import RESULT, Added
from bench.storms import WARMUP
from bench.watchers import NOTHING
from lab.bench.__main__ import MODULES
from lab.bench.host import PACKAGES
from lab.bench.recorded import count_events
from lab.bench.table import reports
from lab.common import rootfs
from lab.common.steps import LabError

RUNNING = "unicast-running"
SENT = 100
UNTRACED = {"S": 900.0, "D": 400.0, "R": 1000.0}
VERSIONS = {"tool": "1.2"}
EVERY_IPI = {"kvm_exit": SENT + WARMUP, "kvm_entry": SENT + WARMUP, "kvm_eoi": 3}


def added(watcher: str, by: float, *, key: str = "", counted: int = SENT) -> Added:
    watched = {letter: ticks + by for letter, ticks in UNTRACED.items()}
    events = {} if key or watcher == NOTHING else {"kvm_exit": counted}
    return Added(RUNNING, watcher, key, SENT, UNTRACED, watched, counted=events)


def table(*found: Added, recorded: Mapping[str, int] = EVERY_IPI) -> list[list[str]]:
    (report,) = reports(found, lambda _added: recorded, VERSIONS)
    return [[str(cell) for cell in row] for row in report.rows]


def test_events_are_counted_in_the_listings_of_each_tool() -> None:
    perf = "       kvm:kvm_entry: \n        kvm:kvm_exit: \n     kvm:kvm_entry: \n"
    assert count_events(perf) == {"kvm_entry": 2, "kvm_exit": 1}
    trace_cmd = (
        "cpus=2\n"
        "         python3-171   [001] d..1.    22.190123: kvm_exit:             vcpu 1 reason HLT\n"
        "         CPU 0/KVM-9   [000]     22.190124: kvm_entry:            vcpu 0 rip 0x[1] 2: x:\n"
    )
    assert count_events(trace_cmd) == {"kvm_exit": 1, "kvm_entry": 1}
    bpftrace = "Attaching 9 probes...\n\n@[tracepoint:kvm:kvm_exit]: 503\n@[tracepoint:a:b]: 2\n"
    assert count_events(bpftrace) == {"kvm_exit": 503, "b": 2}


def test_a_row_has_what_the_watcher_adds_and_what_it_records() -> None:
    rows = table(added(NOTHING, 0), added("ours", 1200), added("theirs", 2400, key="theirs"))
    assert rows[0] == [NOTHING, "900", "400", "1,000", "", ""]
    assert rows[1] == ["ours", "+1,200", "+1,200", "+1,200", "100%", "kvm_exit"]
    # 3 of 200 IPIs are the host's own; the rest belongs to each IPI.
    assert rows[2][1:] == ["+2,400", "+2,400", "+2,400", "100%", "kvm_entry, kvm_exit"]


def test_an_event_that_comes_twice_is_shown_so() -> None:
    rows = table(
        added("theirs", 10, key="theirs"),
        recorded={"kvm_exit": SENT + WARMUP, "kvm_msr": 2 * (SENT + WARMUP)},
    )
    assert rows[0][-1] == "kvm_exit, kvm_msr x 2"


def test_a_watcher_that_missed_a_part_of_the_storm_gives_no_figures() -> None:
    late = {"kvm_exit": (SENT + WARMUP) // 2}
    with pytest.raises(LabError, match=r"theirs recorded 0\.50 kvm_exit per IPI"):
        table(added("theirs", 10, key="theirs"), recorded=late)
    with pytest.raises(LabError, match=r"ours recorded 0\.50 kvm_exit per IPI"):
        table(added("ours", 10, counted=SENT // 2))


def test_a_tool_that_does_not_run_has_the_reason_in_its_row() -> None:
    none = Added(RUNNING, "theirs", "theirs", SENT, UNTRACED, None, "no headers")
    assert table(none) == [["theirs", "", "", "", "", "no headers"]]


def test_each_scenario_is_a_table_with_its_untraced_figures() -> None:
    other = Added("self", NOTHING, "", SENT, UNTRACED, {"S": 1.0, "D": 1.0, "R": 1.0})
    found = [added(NOTHING, 0), added("ours", 5), other]
    first, second = reports(found, lambda _: {}, VERSIONS)
    assert first.title.endswith(RUNNING)
    assert second.title.endswith("self")
    notes = "\n".join(first.notes)
    assert "S 900, D 400, R 1,000 in all 2 pairs" in notes
    assert "tool 1.2" in notes


def test_the_host_needs_no_other_module_and_no_other_package(tmp_path: Path) -> None:
    """What this machine has beside is hidden: a wrong import must not fail after five minutes."""
    (tmp_path / "bench").mkdir()
    for name in MODULES:
        (tmp_path / f"bench/{name}.py").write_text((CHECKOUT / f"bench/{name}.py").read_text())
    absent = {"pyperf", "scipy", "lab"}
    assert not any(name in package for name in absent for package in rootfs.HOST)
    program = (
        f"import sys; sys.path[:0] = {[str(tmp_path), str(CHECKOUT)]}; "
        f"sys.modules.update(dict.fromkeys({sorted(absent)})); "
        "import bench.added; print(*sorted(m for m in sys.modules if m.startswith('bench.')))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == sorted(f"bench.{name}" for name in MODULES if name != "__init__")


@pytest.fixture(scope="module")
def boot() -> LabResult:
    return run_lab("bench", "--scenario", RUNNING, "--count", str(SENT))


@pytest.fixture(scope="module")
def measured(boot: LabResult) -> list[Added]:
    return [Added(**fields) for fields in json.loads((boot.output / RESULT).read_text())]


@pytest.mark.lab("bench")
def test_each_watcher_is_gone_when_the_next_one_is_measured(measured: list[Added]) -> None:
    """The least that any watcher adds is a hundred times as much."""
    for letter in "SDR":
        untraced = [each.nothing[letter] for each in measured]
        assert max(untraced) - min(untraced) <= 10
    assert measured[0].watcher == NOTHING
    assert measured[0].watched == pytest.approx(measured[0].nothing, abs=5)


@pytest.mark.lab("bench")
def test_each_tool_but_kvmexit_runs_there_and_costs_something(
    boot: LabResult, measured: list[Added]
) -> None:
    assert {each.key: each.why for each in measured if each.why}.keys() == {"kvmexit"}
    assert "kernel headers" in measured[-1].why
    for each in measured[1:]:
        if each.watched:
            assert all(each.watched[letter] > each.nothing[letter] + 100 for letter in "SDR")
    assert all(f"{package} " in boot.printed for package in PACKAGES)
    assert (boot.output / "bench.json").exists()
