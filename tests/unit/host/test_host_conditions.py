# SPDX-License-Identifier: Apache-2.0
"""One look at threads and CPUs, and at other runs, from made-up trees."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest

from ipitrace.host.conditions import read_conditions
from ipitrace.host.files import HostFiles
from ipitrace.host.neighbours import KvmProcess, changes, read_neighbours
from ipitrace.host.runs import OtherRun, announced, other_runs

MakeFiles = Callable[[Mapping[str, str]], HostFiles]

TID = os.getpid()  # a thread that is really there, for sched_getaffinity(2)
TASK = f"/proc/{TID}/task/{TID}"
CPU = "/sys/devices/system/cpu"
TREE = {
    f"{TASK}/stat": f"{TID} (a) b) R " + " ".join(str(n) for n in range(4, 53)),
    f"{TASK}/schedstat": "5000000 700 12",
    f"{TASK}/sched": "x (1, #threads: 1)\nse.nr_migrations    :     42\nnr_switches   :  7\n",
    f"{CPU}/online": "0-2,5",
    f"{CPU}/smt/active": "0",
    f"{CPU}/smt/control": "off",
    f"{CPU}/intel_pstate/no_turbo": "1",
    f"{CPU}/cpu5/cpufreq/scaling_governor": "performance",
    f"{CPU}/cpu5/cpufreq/scaling_min_freq": "800000",
    f"{CPU}/cpu5/cpufreq/scaling_max_freq": "3000000",
    f"{CPU}/cpu5/cpufreq/scaling_cur_freq": "2400000",
    f"{CPU}/cpu5/thermal_throttle/core_throttle_count": "3",
    f"{CPU}/cpu5/thermal_throttle/package_throttle_count": "4",
    "/proc/stat": "cpu  1 1 1 1 1 1 1 1 1 1\ncpu5 1 1 1 1 1 1 1 250 0 0\nintr 1\n",
}


def test_a_look(make_files: MakeFiles) -> None:
    look = read_conditions([TID], [5], make_files(TREE))
    (thread,), (cpu,) = look.threads, look.cpus
    assert thread.allowed_cpus == tuple(sorted(os.sched_getaffinity(0)))
    assert thread.last_cpu == 39  # the field of that number counts from 1 here
    assert (thread.ran_ns, thread.run_delay_ns, thread.migrations) == (5_000_000, 700, 42)
    assert (cpu.cpu, cpu.governor, cpu.limits_khz) == (5, "performance", (800_000, 3_000_000))
    assert (cpu.khz, cpu.throttled) == (2_400_000, 7)
    assert cpu.stolen_s == pytest.approx(250 / os.sysconf("SC_CLK_TCK"))
    assert (look.online, look.smt, look.turbo) == ((0, 1, 2, 5), "off", False)


def test_a_cpu_goes_offline(make_files: MakeFiles) -> None:
    files = make_files(TREE)
    (files.root / f"{CPU}/online".lstrip("/")).write_text("0-2\n")
    assert read_conditions([], [], files).online == (0, 1, 2)


def test_a_reader_that_loses_its_cpu_sees_no_suspension(monkeypatch: pytest.MonkeyPatch) -> None:
    now_ns = [10**12]

    def mono() -> int:
        now_ns[0] += 1000
        return now_ns[0]

    def boot(_clock: int) -> int:
        at_ns = now_ns[0]
        if at_ns < 10**12 + 200_000_000:
            now_ns[0] += 50_000_000  # 50 ms until it goes on
        return at_ns + 7_000_000_000

    monkeypatch.setattr(time, "monotonic_ns", mono)
    monkeypatch.setattr(time, "clock_gettime_ns", boot)
    look = read_conditions([], [])
    assert look.suspended_ns == pytest.approx(7_000_000_000, abs=10_000)


def test_a_kernel_that_tells_nothing(make_files: MakeFiles) -> None:
    look = read_conditions([1 << 22], [0], make_files({f"{CPU}/online": "nonsense"}))
    (thread,), (cpu,) = look.threads, look.cpus
    known = (thread.allowed_cpus, thread.last_cpu, thread.ran_ns, thread.run_delay_ns)
    assert known == (None, None, None, None)
    assert (cpu.governor, cpu.khz, cpu.throttled, cpu.stolen_s) == (None, None, None, None)
    assert look.online is None


def test_a_thread_that_runs_is_seen_to_run() -> None:
    """The fields are those that this kernel really has."""
    before = read_conditions([TID], sorted(os.sched_getaffinity(0)))
    sum(range(3_000_000))
    after = read_conditions([TID], sorted(os.sched_getaffinity(0)))
    assert after.at_ns > before.at_ns
    assert after.threads[0].last_cpu in os.sched_getaffinity(0)
    if before.threads[0].ran_ns is not None:
        assert (after.threads[0].ran_ns or 0) >= before.threads[0].ran_ns
    assert after.online is not None


def test_other_runs_are_told_from_other_sockets(make_files: MakeFiles) -> None:
    line = "0000: 00000002 00000000 00000000 0002 01 1"
    names = [
        "@ipitrace-run/77/0,1",
        "@ipitrace-run/78/",
        f"@ipitrace-run/{os.getpid()}/0",
        "@ipitrace-run/x/0",
        "@ipitrace-run/79/0;rm",
        "/run/ipitrace-run/80/1",
    ]
    files = make_files({"/proc/net/unix": "\n".join(["Num Path", *(f"{line} {n}" for n in names)])})
    assert other_runs(files) == (OtherRun(77, frozenset({0, 1})), OtherRun(78, frozenset()))


def test_a_run_is_seen_by_other_processes_while_it_lasts() -> None:
    name = f"@ipitrace-run/{os.getpid()}/"

    def names() -> list[str]:
        text = HostFiles().text("/proc/net/unix") or ""
        return [line.split()[-1] for line in text.splitlines() if name in line]

    with announced((1, 0)):
        assert names() == [f"{name}0,1"]
    assert names() == []
    with announced(range(64)):
        assert names() == [name]


def test_who_came_and_who_went(make_files: MakeFiles) -> None:
    before = replace(
        read_neighbours(make_files({})),
        kvm_processes=(KvmProcess(1, "qemu", 1, 2), KvmProcess(2, "crosvm", 1, 2)),
        perf_event_pids=(7,),
        ftrace_kvm_instances=("",),
        tracing_ids=frozenset({1, 2}),
    )
    after = replace(
        before,
        kvm_processes=(KvmProcess(2, "crosvm", 1, 2), KvmProcess(3, "q\x1b[2J", 1, 2)),
        perf_event_pids=(8,),
        ftrace_kvm_instances=("x",),
        tracing_ids=frozenset({2, 3, 4}),
    )
    assert list(changes(before, before)) == []
    assert list(changes(before, after)) == [
        "the KVM process 1 (qemu) disappeared",
        "the KVM process 3 (?) appeared",
        "process 7, which holds perf events, disappeared",
        "process 8, which holds perf events, appeared",
        "2 BPF programs on kernel events appeared",
        "1 BPF program on kernel events disappeared",
        "ftrace's kvm events at the top level were switched off",
        "ftrace's kvm events in the instance 'x' were switched on",
    ]
    unseen = replace(after, tracing_ids=None, ftrace_kvm_instances=None)
    assert len(list(changes(before, unseen))) == 4
    hidden = replace(unseen, kvm_processes=(), perf_event_pids=(), unreadable_processes=5)
    assert list(changes(before, hidden)) == []
    assert "tracing_ids" not in after.to_dict()
