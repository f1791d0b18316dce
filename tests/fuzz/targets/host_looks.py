# SPDX-License-Identifier: Apache-2.0
"""What is looked at around each storm: threads, CPUs, neighbours, other runs; parts between \\0.

Any user may choose the names of sockets and processes in it.
"""

from dataclasses import replace

from ipitrace.host.conditions import read_conditions
from ipitrace.host.descriptors import unlisted_processes
from ipitrace.host.neighbours import changes, read_neighbours
from ipitrace.host.runs import MOST_RUNS, other_runs

from ..files import tree

_CPU = "/sys/devices/system/cpu"
_TASK = "/proc/100/task/100"
_FILES = (
    *("/proc/net/unix", f"{_TASK}/stat", f"{_TASK}/schedstat", f"{_TASK}/sched", "/proc/stat"),
    *(f"{_CPU}/online", f"{_CPU}/cpu0/cpufreq/scaling_governor", "/proc/100/comm"),
    *(f"{_CPU}/cpu0/cpufreq/scaling_cur_freq", "/proc/loadavg", "/proc/self/mounts"),
    *(f"{_CPU}/cpu0/thermal_throttle/core_throttle_count", "/proc/100/stat"),
    *("/sys/kernel/tracing/events/kvm/enable", "/sys/kernel/tracing/instances/a/events/kvm/enable"),
)
_LINKS = {"/proc/100/fd/9": "anon_inode:kvm-vm", "/proc/100/fd/8": "anon_inode:[perf_event]"}
_MOST_CPUS = 100_000


def fuzz(data: bytes) -> None:
    parts = data.split(b"\0")
    contents = {path: parts[i] if i < len(parts) else b"" for i, path in enumerate(_FILES)}
    files = tree(contents, _LINKS)
    read_conditions([100], [0], files)
    unlisted_processes(files)
    after = read_neighbours(files, own_pids=())
    alone = replace(after, kvm_processes=(), perf_event_pids=(), ftrace_kvm_instances=())
    for line in (*changes(alone, after), *changes(after, alone)):
        assert line.isprintable()
    runs = other_runs(files)
    assert len(runs) <= MOST_RUNS
    assert all(cpu < _MOST_CPUS for run in runs for cpu in run.cpus)
