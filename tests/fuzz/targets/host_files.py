# SPDX-License-Identifier: Apache-2.0
"""/proc and /sys as the fingerprint reads them, each file one part between \\0."""

from ipitrace.host.cpus import choose_cpus, read_topology
from ipitrace.host.fingerprint import one_line, read_fingerprint

from ..files import tree

_CPU = "/sys/devices/system/cpu"
_FILES = (
    *("/proc/cpuinfo", "/proc/meminfo", f"{_CPU}/online", f"{_CPU}/cpu0/cache/index0/level"),
    *(f"{_CPU}/cpu0/topology/thread_siblings_list", f"{_CPU}/cpu0/cache/index0/shared_cpu_list"),
    *("/sys/module/kvm/parameters/halt_poll_ns", "/sys/devices/system/node/online"),
    *(f"{_CPU}/smt/control", f"{_CPU}/cpufreq/boost", f"{_CPU}/intel_pstate/no_turbo"),
    *("/proc/sys/kernel/osrelease", f"{_CPU}/cpuidle/current_driver", "/sys/module/kvm_amd/refcnt"),
)


def fuzz(data: bytes) -> None:
    parts = data.split(b"\0")
    files = tree({path: parts[i] if i < len(parts) else b"" for i, path in enumerate(_FILES)})
    one_line(read_fingerprint(files))
    choose_cpus(1, {0}, read_topology(files))
