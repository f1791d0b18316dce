# SPDX-License-Identifier: Apache-2.0
"""The state of vCPU threads and of their CPUs at one moment: affinity, times, frequency.

The state is sampled before and after a storm. The difference shows whether the storm was
disturbed.
"""

import contextlib
import os
import re
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from ipitrace.host.files import HOST, HostFiles, parse_cpu_list
from ipitrace.host.fingerprint import CPU_DIR, read_smt, read_turbo

_LAST_CPU: Final = 36  # fields after the name, proc_pid_stat(5): `processor` is field 39
_STEAL: Final = 7  # of /proc/stat's cpuN line, proc_stat(5)
_READINGS: Final = 20
_CLOSE_NS: Final = 100_000
_MIGRATIONS: Final = re.compile(r"^se\.nr_migrations\s*:\s*(\d+)$", re.MULTILINE)


@dataclass(frozen=True)
class ThreadLook:
    """One vCPU's thread. None means that the kernel does not report the value."""

    tid: int
    allowed_cpus: tuple[int, ...] | None
    """sched_getaffinity(2)."""
    last_cpu: int | None
    """The CPU that it runs on or ran on last."""
    ran_ns: int | None
    """Its CPU time since it was started.

    /proc/PID/task/TID/schedstat (Documentation/scheduler/sched-stats.rst). The value of a
    running thread is up to one timer tick old.
    """
    run_delay_ns: int | None
    """The time that it was runnable and waited for a CPU; from the same file."""
    migrations: int | None
    """The number of its migrations to another CPU; needs CONFIG_SCHED_DEBUG."""


@dataclass(frozen=True)
class CpuLook:
    """One CPU. None means that the kernel does not report the value."""

    cpu: int
    governor: str | None
    limits_khz: tuple[int | None, int | None]
    """The lowest and the highest frequency that the policy allows."""
    khz: int | None
    """scaling_cur_freq."""
    throttled: int | None
    """The number of thermal throttling events: core and package counters added.

    Documentation/arch/x86/x86_64/machinecheck.rst; therm_throt.c counts them.
    """
    stolen_s: float | None
    """Steal time since boot: time that this host's own hypervisor gave to other guests."""


@dataclass(frozen=True)
class Conditions:
    """The state of all threads and CPUs at one moment."""

    at_ns: int
    """CLOCK_MONOTONIC."""
    suspended_ns: int
    """CLOCK_BOOTTIME minus CLOCK_MONOTONIC: the time for which the host was suspended."""
    threads: tuple[ThreadLook, ...]
    """In the vCPUs' order."""
    cpus: tuple[CpuLook, ...]
    online: tuple[int, ...] | None
    smt: str
    turbo: bool | None


def read_conditions(
    tids: Sequence[int], cpus: Collection[int], files: HostFiles = HOST
) -> Conditions:
    """Read the state once: less than 0.1 ms for each thread and CPU. Missing values never raise.

    Args:
        tids: the vCPUs' threads, of any process.
        cpus: the CPUs that they should run on.
        files: the kernel files to read.
    """
    at_ns = time.monotonic_ns()
    stolen = _stolen_s(files)
    return Conditions(
        at_ns=at_ns,
        suspended_ns=_suspended_ns(),
        threads=tuple(_thread(files, tid) for tid in tids),
        cpus=tuple(_cpu(files, cpu, stolen.get(cpu)) for cpu in sorted(set(cpus))),
        online=_online(files),
        smt=read_smt(files),
        turbo=read_turbo(files),
    )


def _suspended_ns() -> int:
    """CLOCK_BOOTTIME minus CLOCK_MONOTONIC, from the pair of readings with the shortest gap.

    This process may be preempted between the two readings, for longer than a suspension takes.
    """
    closest_ns, found_ns = None, 0
    for _ in range(_READINGS):
        before_ns = time.monotonic_ns()
        boot_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        after_ns = time.monotonic_ns()
        if closest_ns is None or after_ns - before_ns < closest_ns:
            closest_ns = after_ns - before_ns
            found_ns = boot_ns - (before_ns + after_ns) // 2
        if closest_ns < _CLOSE_NS:
            break
    return found_ns


def _thread(files: HostFiles, tid: int) -> ThreadLook:
    # /proc/TID of a thread is not listed, but it exists (proc(5)).
    directory = f"/proc/{tid}/task/{tid}"
    allowed = None
    with contextlib.suppress(OSError):
        allowed = tuple(sorted(os.sched_getaffinity(tid)))
    fields = (files.text(f"{directory}/stat") or "").rpartition(")")[2].split()
    last = fields[_LAST_CPU] if len(fields) > _LAST_CPU else ""
    times = [int(n) for n in (files.text(f"{directory}/schedstat") or "").split() if n.isdecimal()]
    match = _MIGRATIONS.search(files.text(f"{directory}/sched") or "")
    return ThreadLook(
        tid=tid,
        allowed_cpus=allowed,
        last_cpu=int(last) if last.isdecimal() else None,
        ran_ns=times[0] if len(times) > 1 else None,
        run_delay_ns=times[1] if len(times) > 1 else None,
        migrations=int(match[1]) if match else None,
    )


def _cpu(files: HostFiles, cpu: int, stolen_s: float | None) -> CpuLook:
    directory = f"{CPU_DIR}/cpu{cpu}"
    frequency, heat = f"{directory}/cpufreq", f"{directory}/thermal_throttle"
    throttled = [
        n
        for part in ("core", "package")
        if (n := files.number(f"{heat}/{part}_throttle_count")) is not None
    ]
    return CpuLook(
        cpu=cpu,
        governor=files.text(f"{frequency}/scaling_governor"),
        limits_khz=(
            files.number(f"{frequency}/scaling_min_freq"),
            files.number(f"{frequency}/scaling_max_freq"),
        ),
        khz=files.number(f"{frequency}/scaling_cur_freq"),
        throttled=sum(throttled) if throttled else None,
        stolen_s=stolen_s,
    )


def _stolen_s(files: HostFiles) -> dict[int, float]:
    """Steal time by CPU."""
    per_s = os.sysconf("SC_CLK_TCK")
    found = {}
    for line in (files.text("/proc/stat") or "").splitlines():
        match = re.match(r"cpu(\d+) (.*)", line)
        fields = match[2].split() if match else []
        if match and len(fields) > _STEAL and fields[_STEAL].isdecimal():
            found[int(match[1])] = int(fields[_STEAL]) / per_s
    return found


def _online(files: HostFiles) -> tuple[int, ...] | None:
    text = files.text(f"{CPU_DIR}/online")
    try:
        return parse_cpu_list(text) if text else None
    except ValueError:
        return None
