# SPDX-License-Identifier: Apache-2.0
"""`ipitrace watch` beside real VMs in other processes."""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from checks import assert_sound_interval
from guests import micro_guest, until
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

import ipitrace
from ipitrace.abi.watch import What
from ipitrace.tracer.counting import Counting
from ipitrace.vm import find_vms

pytestmark = pytest.mark.live

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(ipitrace.__file__).parents[1])}

# Says the threads, and waits for a line before the warm-up, before the first measured send and
# after the last.
GUEST = """
import sys
from ipitrace.storm.driver import Hooks, StormRequest
from ipitrace.storm.micro.driver import MicroGuest
from ipitrace.words.scenarios import select_scenarios
name, n_vcpus, count, pace = sys.argv[1], *map(int, sys.argv[2:])
request = StormRequest(select_scenarios([name])[0], n_vcpus, count, 1, pace, 60.0)
def step():
    print("waiting", flush=True)
    sys.stdin.readline()
guest = MicroGuest.prepare(n_vcpus, None)
guest.run(request, Hooks(lambda tids: print(*tids, flush=True), step))
"""


@dataclass
class SteppedGuest:
    """A guest whose storm begins and ends when told."""

    process: "subprocess.Popen[str]"
    tids: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"pid:{self.process.pid}"

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def wait(self) -> None:
        """Until it waits for the next line."""
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "waiting\n"


@contextlib.contextmanager
def stepped_guest(scenario: str, n_vcpus: int, count: int, pace: int = 0) -> Iterator[SteppedGuest]:
    with subprocess.Popen(
        [sys.executable, "-c", GUEST, scenario, str(n_vcpus), str(count), str(pace)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    ) as process:
        try:
            assert process.stdout is not None
            guest = SteppedGuest(process, tuple(map(int, process.stdout.readline().split())))
            guest.wait()  # before its warm-up
            guest.go_on()
            guest.wait()
            yield guest
        finally:
            process.kill()


@contextlib.contextmanager
def watching(*words: object) -> Iterator["subprocess.Popen[str]"]:
    with subprocess.Popen(
        [sys.executable, "-m", "ipitrace", "watch", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def next_interval(process: "subprocess.Popen[str]") -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.stderr.read() if process.stderr else ""
    interval = cast("dict[str, Any]", json.loads(line))
    assert_sound_interval(interval)
    return interval


def interval_after_now(process: "subprocess.Popen[str]") -> dict[str, Any]:
    """The first interval that begins after this call; those before it are read past."""
    now = datetime.now(UTC)
    while True:
        interval = next_interval(process)
        began = datetime.fromisoformat(interval["time"]) - timedelta(seconds=interval["duration_s"])
        if began > now:
            return interval


@pytest.mark.parametrize(
    ("scenario", "n_vcpus", "pairs"),
    [
        ("unicast-running", 2, {(0, 1, 0xF0)}),
        ("unicast-running-xapic", 2, {(0, 1, 0xF0)}),
        ("unicast-blocked", 2, {(0, 1, 0xF0)}),
        ("self", 2, {(0, 0, 0xF1)}),
        ("broadcast", 4, {(0, 1, 0xF0), (0, 2, 0xF0), (0, 3, 0xF0)}),
    ],
)
def test_every_ipi_of_a_storm_is_counted(
    scenario: str, n_vcpus: int, pairs: set[tuple[int, int, int]]
) -> None:
    count = 300
    with (
        stepped_guest(scenario, n_vcpus, count) as guest,
        watching("--vm", guest.name, "--interval", 0.2, "--json") as watch,
    ):
        # With the storm not begun, nothing is seen, and that is not called nothing.
        (before,) = next_interval(watch)["vms"]
        assert before["ipis"] == {"delta": 0, "total": 0}
        assert before["visibility"]["complete"] is None
        guest.go_on()
        guest.wait()
        interval = interval_after_now(watch)
        guest.go_on()
    (vm,) = interval["vms"]
    assert vm["sends"]["total"] == count
    found = {(p["sender"], p["target"], p["vector"]): p["ipis"]["total"] for p in vm["pairs"]}
    assert found == dict.fromkeys(pairs, count)
    assert vm["ipis"]["total"] == count * len(pairs)
    assert vm["others"] == []
    assert vm["missed"]["total"] == vm["unplaced"]["total"] == 0
    sent = {v["vcpu"]: v["sent"]["total"] for v in vm["vcpus"]}
    assert sent == {0: count * len(pairs)} | dict.fromkeys(range(1, n_vcpus), 0)
    woken = {v["vcpu"]: v["wakeups"]["total"] for v in vm["vcpus"]}
    assert (woken[1] > 0) == (scenario == "unicast-blocked")
    assert vm["visibility"]["complete"] is True
    assert vm["exits"]["absent"] if vm["exits"]["reasons"] is None else vm["exits"]["source"]


def test_one_interrupt_is_not_enough_for_a_claim() -> None:
    with (
        stepped_guest("unicast-running", 2, 1) as guest,
        watching("--vm", guest.name, "--interval", 0.2) as watch,
    ):
        assert watch.stdout is not None
        assert "ipitrace watch" in watch.stdout.readline()  # it is attached
        guest.go_on()
        guest.wait()
        time.sleep(0.5)
        watch.send_signal(signal.SIGINT)
        said, complained = watch.communicate(timeout=60)
        guest.go_on()
    assert complained == ""
    summary = " ".join(said.partition("whole run")[2].split())
    assert "too few to decide whether IPIs without exit are missing" in summary
    assert "accepted none of 1 interrupt seen; 299 would show that it is less than 1 %" in summary
    assert "take exits" not in summary
    assert ">=1 " in summary


def test_a_full_table_still_counts_everything() -> None:
    with stepped_guest("broadcast", 8, 20) as guest, Counting.load(n_slots=8, n_cells=4) as own:
        for slot, tid in enumerate(guest.tids):
            own.give(slot, tid)
        guest.go_on()
        guest.wait()
        counts = own.read(range(8))
        guest.go_on()
    (head,) = counts.heads[:1]
    used = counts.slot == 0
    assert used.sum() == 4, "all cells are taken"
    ipis = counts.now[used & (counts.key >> np.uint64(60) == What.IPI)]
    assert head["unplaced"][What.IPI] > 0
    assert int(ipis.sum()) + int(head["unplaced"][What.IPI]) == 20 * 7
    assert head["missed"] == 0
    # It has one writer: the other vCPUs' tables are theirs alone.
    assert not counts.heads[1:]["sends"].any()


def test_a_vm_that_dies_ends_the_run_with_what_was_seen() -> None:
    with (
        micro_guest() as guest,
        watching("--vm", f"pid:{guest.pid}", "--interval", 0.2) as watch,
    ):
        assert watch.stdout is not None
        assert "ipitrace watch" in watch.stdout.readline()
        guest.kill()
        said, complained = watch.communicate(timeout=60)
        assert watch.returncode == 4
    assert "whole run" in said
    assert "has ended" in complained  # its first thread, or already all of it
    assert "Traceback" not in complained


@pytest.mark.parametrize(("words", "code"), [((), 0), (("--duration", 60), 130)])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_with_a_summary(
    words: tuple[object, ...], code: int, number: signal.Signals
) -> None:
    with (
        micro_guest() as guest,
        watching("--vm", f"pid:{guest.pid}", "--interval", 0.2, *words) as watch,
    ):
        assert watch.stdout is not None
        watch.stdout.readline()
        watch.send_signal(number)
        said, complained = watch.communicate(timeout=60)
        assert watch.returncode == code, complained
    assert "whole run" in said
    assert "Traceback" not in complained


def test_duration_ends_it() -> None:
    with (
        micro_guest() as guest,
        watching("--vm", f"pid:{guest.pid}", "--duration", 1, "--interval", 0.4, "--json") as watch,
    ):
        said, _ = watch.communicate(timeout=60)
        assert watch.returncode == 0
    intervals = [json.loads(line) for line in said.splitlines()]
    assert [interval["number"] for interval in intervals] == list(range(len(intervals)))
    assert 1 <= len(intervals) <= 3
    assert intervals[-1]["elapsed_s"] >= 1


def test_all_vms_come_and_go() -> None:
    with micro_guest() as old, watching("--interval", 0.3, "--json") as watch:
        assert str(old.pid) in {str(vm["pid"]) for vm in next_interval(watch)["vms"]}
        with micro_guest("unicast-blocked") as young:
            until(lambda: young.pid in {vm["pid"] for vm in next_interval(watch)["vms"]})
            until(
                lambda: any(
                    vm["pid"] == young.pid and vm["ipis"]["total"]
                    for vm in next_interval(watch)["vms"]
                )
            )
            young.kill()
            # Others' VMs may end meanwhile.
            until(
                lambda: any(f"pid {young.pid})" in text for text in next_interval(watch)["ended"])
            )
        last = next_interval(watch)
        assert young.pid not in {vm["pid"] for vm in last["vms"]}
        assert old.pid in {vm["pid"] for vm in last["vms"]}
        assert last["departed"] > 0


def totals(text: str) -> dict[tuple[str, str], float]:
    return {
        (sample.name, str(sample.labels)): sample.value
        for family in parse_openmetrics(text)
        for sample in family.samples
        if sample.name.endswith("_total")
    }


def test_openmetrics_never_falls_and_is_whole_at_any_time(tmp_path: Path) -> None:
    path = tmp_path / "ipitrace.prom"
    with (
        micro_guest() as guest,
        watching(
            *("--vm", f"pid:{guest.pid}", "--interval", 0.1, "--duration", 2, "--json"),
            *("--openmetrics", path),
        ) as watch,
    ):
        assert watch.stdout is not None
        fcntl.fcntl(watch.stdout, fcntl.F_SETPIPE_SZ, 1 << 20)  # it is read only at the end
        until(path.exists)
        last: dict[tuple[str, str], float] = {}
        seen: dict[str, Any] = {}
        while watch.poll() is None:
            text = path.read_text()
            now = totals(text)
            assert last.keys() <= now.keys()
            assert all(now[key] >= value for key, value in last.items())
            last = now
            time.sleep(0.03)
        seen = json.loads(watch.stdout.read().splitlines()[-1])
    text = path.read_text()
    counted = sum(v for (name, _), v in totals(text).items() if name == "ipitrace_ipis_total")
    assert counted == seen["vms"][0]["ipis"]["total"] > 0
    assert {path.name} == {p.name for p in tmp_path.iterdir()}, "no temporary file is left"
    # What node_exporter reads is the older text format.
    samples = {s.name: s.value for family in parse_text(text) for s in family.samples}
    complete = seen["vms"][0]["visibility"]["complete"]
    assert samples["ipitrace_ipis_complete"] == (complete is True) == (counted >= 299)


def test_nothing_is_left_behind() -> None:
    with micro_guest() as guest:
        vm = next(vm for vm in find_vms() if vm.pid == guest.pid)
        before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208
        with Counting.load(n_slots=4, n_cells=64) as own:
            for slot, tid in enumerate(vm.tids):
                own.give(slot, tid)
            until(lambda: own.read([0]).heads["sends"][0])
        assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_an_unknown_vm_and_a_bad_file_are_told() -> None:
    for words in (("--vm", "no-such-vm"), ("--openmetrics", "/no/such/dir/file.prom")):
        with watching(*words) as watch:
            _, complained = watch.communicate(timeout=60)
            assert watch.returncode == 2
            assert complained.startswith("ipitrace: ")


def test_a_flood_is_counted_in_memory_that_does_not_grow() -> None:
    """What it costs, `make bench` measures."""
    n_vcpus, n_first, n_last = 8, 2, 8  # not the first intervals, in which it still settles
    words = [sys.executable, "-m", "bench.flood", str(n_vcpus)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as flood:
        try:
            assert flood.stdout is not None
            assert flood.stdout.readline() == "mark\n"
            with watching("--vm", f"pid:{flood.pid}", "--json") as watch:
                intervals = [next_interval(watch) for _ in range(n_last)][n_first:]
        finally:
            flood.kill()
    assert intervals[-1]["own"]["rss_bytes"] <= intervals[0]["own"]["rss_bytes"] + (1 << 20)
    (vm,) = intervals[-1]["vms"]
    assert {pair["target"] for pair in vm["pairs"]} == set(range(1, n_vcpus))
    assert sum(pair["ipis"]["total"] for pair in vm["pairs"]) == vm["ipis"]["total"]
    assert vm["missed"]["total"] == vm["unplaced"]["total"] == 0
