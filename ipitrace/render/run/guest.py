# SPDX-License-Identifier: Apache-2.0
"""The lines of a run's guest and of its limits."""

from ipitrace.recording.result import RunLimits, RunResult
from ipitrace.words.disturbances import DisturbanceKind


def guest_line(run: RunResult) -> str:
    """The guest, its vCPUs and the CPUs on which they ran."""
    pinned = run.guest.pinned_cpus
    where = f"pinned to CPUs {', '.join(map(str, pinned))}" if pinned else "not pinned"
    if any(found.kind == DisturbanceKind.MOVED for found in run.disturbances or ()):
        where += ", but not all the time (see below)"
    kind = run.guest.kind
    if kind == "native":
        return f"native: the {run.guest.n_vcpus} CPUs of this machine, Linux {run.guest.kernel}"
    if kind == "linux":
        vm = run.guest.vm
        name = f"{vm.name} ({vm.vmm})" if vm else "a Linux guest"
        kind = f"{name}, Linux {run.guest.kernel} via {run.guest.via}"
        where = where if vm else "its process on the host is not known"
        if run.guest.emulated:
            where += "; emulated guest: cycles are not real time"
    return f"{kind}, {run.guest.n_vcpus} vCPUs, {where}"


def limits_line(limits: RunLimits) -> str:
    """The upper limits of the storms."""
    parts = []
    if limits.max_rate_hz is not None:
        parts.append(f"{limits.max_rate_hz:g} sends per second (--max-rate)")
    if limits.max_time_s is not None:
        parts.append(f"{limits.max_time_s:g} s of storms (--max-time)")
    why = "; the default for a VM that ipitrace did not start" if limits.by_default else ""
    return f"at most {' and '.join(parts)}{why}"
