# SPDX-License-Identifier: Apache-2.0
"""The cost of `ipitrace watch`: its process, and its programs in the vCPUs' threads."""

import contextlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from bench.crowd import crowd
from bench.report import PER_SECOND, Report, Series, spread
from ipitrace.base.errors import HostError
from ipitrace.host.programs import own_command
from ipitrace.tracer.counting import Counting
from ipitrace.vm import VirtualMachine, find_vms

_SECONDS = 10
_NEWCOMERS = 5
_STATS = Path("/proc/sys/kernel/bpf_stats_enabled")
# (name, scenario or None for bench.flood, vCPUs, cycles between sends)
_STORMS: Final[tuple[tuple[str, str | None, int, int], ...]] = (
    ("blocked, paced", "unicast-blocked", 2, 20_000_000),
    ("self", "self", 2, 0),
    ("broadcast", "broadcast-halted", 64, 0),
    ("flood", None, 8, 0),
    ("flood", None, 64, 0),
)
# (name, processes, VMs of each, vCPUs of each, interrupts a second in each)
_CROWDS: Final[tuple[tuple[str, int, int, int, int], ...]] = (
    ("10 VMs, idle", 10, 1, 2, 0),
    ("50 VMs, idle", 50, 1, 2, 0),
    ("200 VMs, idle", 200, 1, 2, 0),
    ("200 VMs, 10 interrupts/s each", 200, 1, 2, 10),
    ("200 VMs, idle, 1,000 vCPUs", 200, 1, 5, 0),
    ("1,000 VMs, idle", 250, 4, 1, 0),
)
_AS_TEXT: Final = ("200 VMs, idle", "200 VMs, 10 interrupts/s each")
_WITH_NEWCOMERS: Final = ("10 VMs, idle", "200 VMs, idle")
_OWN_COST: Final = re.compile(r"^own cost +([0-9.]+)% of one CPU", re.MULTILINE)
_GUEST = """
import sys
from ipitrace.storm.driver import Hooks, StormRequest
from ipitrace.storm.micro.driver import MicroGuest
from ipitrace.words.scenarios import select_scenarios
name, n_vcpus, pace = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
count = 8_000_000 if n_vcpus == 2 else 20_000
request = StormRequest(select_scenarios([name])[0], n_vcpus, count, 1, pace, 60.0)
MicroGuest.prepare(n_vcpus, None).run(request, Hooks(mark=lambda: print("mark", flush=True)))
"""


def watching() -> Report:
    """Watch storms of different rates and sizes, each in a separate process."""
    rows = []
    series = []
    for name, scenario, n_vcpus, pace in _STORMS:
        with _guest(scenario, n_vcpus, pace) as vm:
            intervals = _watch(vm)
            programs = _programs(vm)
        shares = [interval["own"]["cpu_share"] for interval in intervals]
        rates = [_ipis(interval) / interval["duration_s"] for interval in intervals]
        rows.append(
            (
                name,
                n_vcpus,
                spread(rates, 0),
                spread((100 * share for share in shares), 2),
                f"{intervals[-1]['own']['rss_bytes'] >> 20}",
                programs,
            )
        )
        series.append(Series(f"watch {name} {n_vcpus} IPIs", PER_SECOND, rates))
    for name, *size in _CROWDS:
        with crowd(*size):
            intervals = _watch(None)
            text = f"; as text {spread(_watch_as_text(), 2)}" if name in _AS_TEXT else ""
            noticed = _newcomers() if name in _WITH_NEWCOMERS else ""
        own = [100 * interval["own"]["cpu_share"] for interval in intervals]
        longest_s = max(interval["duration_s"] for interval in intervals)
        rows.append(
            (
                name,
                size[0] * size[1] * size[2],
                "-",
                f"{spread(own, 2)}{text}",
                f"{intervals[-1]['own']['rss_bytes'] >> 20}",
                f"longest interval {longest_s:.1f} s{noticed}",
            )
        )
    return Report(
        "Watching running VMs",
        (
            "storm",
            "vCPUs",
            "IPIs/s seen",
            "own % of one CPU",
            "MiB",
            "programs, mean ns per event",
        ),
        rows,
        (
            f"{_SECONDS} intervals of a second, all pairs listed as JSON; median (middle half).",
            "Own: user and system time of the watching process.",
            "As text: the same with text output to a pipe, 20 pairs of each VM.",
            "Several VMs: all VMs are watched, each in a separate process up to 250.",
            "Flood: IPIs that are accepted and never handled (bench/flood.py).",
            "Programs: they run in the vCPUs' threads; kernel statistics (bpf_stats_enabled).",
        ),
        series,
    )


def _ipis(interval: dict[str, Any]) -> int:
    return sum(vm["ipis"]["delta"] for vm in interval["vms"])


@contextlib.contextmanager
def _guest(scenario: str | None, n_vcpus: int, pace: int) -> Iterator[VirtualMachine]:
    if scenario is None:
        words, marks = [sys.executable, "-m", "bench.flood", str(n_vcpus)], 1
    else:  # its warm-up, then its storm: every vCPU has run by then
        words, marks = [sys.executable, "-c", _GUEST, scenario, str(n_vcpus), str(pace)], 2
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            for _ in range(marks):
                if process.stdout is None or not process.stdout.readline():
                    raise HostError("The guest ended early.", "See the output above.")
            yield next(vm for vm in find_vms() if vm.pid == process.pid)
        finally:
            process.kill()


def _watch(vm: VirtualMachine | None) -> list[dict[str, Any]]:
    """The intervals except the first, in which it still loads."""
    which = [] if vm is None else ["--vm", f"pid:{vm.pid}"]
    words = ["watch", *which, "--duration", str(_SECONDS + 1), "-n", "0", "--json"]
    done = subprocess.run(own_command(*words), capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()][1:]


def _watch_as_text() -> list[float]:
    """Its share of a CPU, in percent, in each interval except the first; without the summary."""
    words = own_command("watch", "--duration", str(_SECONDS + 1))
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return [float(share) for share in _OWN_COST.findall(done.stdout)][1:-1]


def _newcomers() -> str:
    """The time until watch reports a VM that started or ended, beside the existing VMs."""
    started, ended = [], []
    words = own_command("watch", "--json", "-n", "0")
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as watch:
        intervals = map(json.loads, watch.stdout or ())
        try:
            next(intervals)
            for _ in range(_NEWCOMERS):
                with crowd(1, 1, 1, 0) as (pid,):
                    began_s = time.monotonic()
                    next(i for i in intervals if pid in {vm["pid"] for vm in i["vms"]})
                    started.append(time.monotonic() - began_s)
                began_s = time.monotonic()
                next(i for i in intervals if any(f"pid {pid})" in text for text in i["ended"]))
                ended.append(time.monotonic() - began_s)
        finally:
            watch.terminate()
            watch.communicate()
    return f"; VM start reported after {spread(started, 1)} s, end after {spread(ended, 1)} s"


def _programs(vm: VirtualMachine) -> str:
    """Mean time of each program that ran."""
    former = _STATS.read_text()
    with Counting.load(n_slots=len(vm.vcpus), n_cells=1024) as counting:
        for slot, tid in enumerate(vm.tids):
            counting.give(slot, tid)
        try:
            _STATS.write_text("1")
            time.sleep(2)
        finally:
            _STATS.write_text(former)
        found = []
        for event, path in counting.programs().items():
            info = dict(line.split(":\t") for line in path.read_text().splitlines())
            runs = int(info["run_cnt"])
            if runs:
                found.append(f"{event} {int(info['run_time_ns']) / runs:.0f}")
    return ", ".join(found)
