# SPDX-License-Identifier: Apache-2.0
"""Neighbours: other VMs, BPF programs and tracers on the host, which can disturb a measurement."""

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Final

from ipitrace.host.bpf_programs import TRACING_TYPES, loaded_program_types
from ipitrace.host.descriptors import scan_processes
from ipitrace.host.files import HOST, HostFiles

_TRACEFS: Final = ("/sys/kernel/tracing", "/sys/kernel/debug/tracing")


@dataclass(frozen=True)
class KvmProcess:
    """A process that holds KVM virtual machines."""

    pid: int
    name: str
    n_vms: int
    n_vcpus: int


@dataclass(frozen=True)
class Neighbours:
    """The neighbours at one moment. None is unknown; `unknown` has the reason."""

    kvm_processes: tuple[KvmProcess, ...]
    perf_event_pids: tuple[int, ...]
    """Processes holding perf events: perf itself, profilers, BPF tools with kprobes."""
    unreadable_processes: int
    """Processes whose descriptors are unreadable. If above 0, the two lists are lower bounds."""
    bpf_programs: int | None
    """All loaded BPF programs on the host; to be read before ipitrace attaches its own."""
    bpf_tracing_programs: int | None
    """The BPF programs that run on kernel events."""
    ftrace_kvm_instances: tuple[str, ...] | None
    """tracefs instances with kvm events enabled; "" is the top-level one."""
    load_average: tuple[float, float, float] | None
    """Over 1, 5 and 15 minutes."""
    unknown: Mapping[str, str]
    """The reason, by name, for each item that could not be read."""
    tracing_ids: frozenset[int] | None = None
    """The ids of `bpf_tracing_programs`; they are valid only until the next boot."""

    def to_dict(self) -> dict[str, object]:
        """The neighbours as types that json supports (tuples become arrays)."""
        return {name: value for name, value in asdict(self).items() if name != "tracing_ids"}


def changes(before: Neighbours, after: Neighbours) -> Iterator[str]:
    """Messages about neighbours that appeared or disappeared between two samples.

    Items that are unknown in one of the samples are not compared. A process that has become
    unreadable has not disappeared: if one sample has unreadable processes and the other has
    none, processes are not compared.
    """
    comparable = bool(before.unreadable_processes) == bool(after.unreadable_processes)
    machines = [{p.pid: p for p in sample.kvm_processes} for sample in (before, after)]
    for pid, process in sorted((machines[0] | machines[1]).items()):
        if comparable and (pid in machines[0]) != (pid in machines[1]):
            name = process.name if process.name.isprintable() else "?"
            yield f"the KVM process {pid} ({name}) {_change(appeared=pid in machines[1])}"
    moved = set(before.perf_event_pids) ^ set(after.perf_event_pids)
    for pid in sorted(moved) if comparable else ():
        appeared = pid in after.perf_event_pids
        yield f"process {pid}, which holds perf events, {_change(appeared=appeared)}"
    if before.tracing_ids is not None and after.tracing_ids is not None:
        for ids, appeared in (
            (after.tracing_ids - before.tracing_ids, True),
            (before.tracing_ids - after.tracing_ids, False),
        ):
            if ids:
                programs = f"{len(ids)} BPF program{'s' if len(ids) > 1 else ''} on kernel events"
                yield f"{programs} {_change(appeared=appeared)}"
    if before.ftrace_kvm_instances is not None and after.ftrace_kvm_instances is not None:
        were, are = set(before.ftrace_kvm_instances), set(after.ftrace_kvm_instances)
        for name in sorted(were ^ are):
            which = f"in the instance '{name}'" if name else "at the top level"
            yield f"ftrace's kvm events {which} were switched {'on' if name in are else 'off'}"


def _change(*, appeared: bool) -> str:
    return "appeared" if appeared else "disappeared"


def read_neighbours(files: HostFiles = HOST, own_pids: Collection[int] | None = None) -> Neighbours:
    """Sample the neighbours: a few ms, two system calls for each open descriptor on the host.

    `own_pids` are the processes of the measurement (by default this process); their machines
    and perf events are not counted. Missing information never raises.
    """
    unknown: dict[str, str] = {}
    own = {os.getpid()} if own_pids is None else set(own_pids)
    kvm_processes, perf_pids, unreadable = _scan_processes(files, own)
    programs: int | None = None
    tracing: frozenset[int] | None = None
    try:
        types = loaded_program_types()
        programs = len(types)
        tracing = frozenset(i for i, kind in types.items() if kind in TRACING_TYPES)
    except OSError as error:
        unknown["bpf_programs"] = f"bpf(2): {error.strerror}"
    instances = _ftrace_kvm_instances(files)
    if instances is None:
        unknown["ftrace_kvm_instances"] = "no readable tracefs with kvm events"
    load = _load_average(files)
    if load is None:
        unknown["load_average"] = "/proc/loadavg is not readable"
    return Neighbours(
        kvm_processes=tuple(kvm_processes),
        perf_event_pids=tuple(perf_pids),
        unreadable_processes=unreadable,
        bpf_programs=programs,
        bpf_tracing_programs=None if tracing is None else len(tracing),
        ftrace_kvm_instances=instances,
        load_average=load,
        unknown=unknown,
        tracing_ids=tracing,
    )


def _scan_processes(files: HostFiles, own: set[int]) -> tuple[list[KvmProcess], list[int], int]:
    """(processes with VMs, pids with perf events, number of unreadable processes)."""
    processes, unreadable = scan_processes(files, own)
    machines = [
        KvmProcess(
            process.pid,
            files.text(f"/proc/{process.pid}/comm") or "?",
            len(process.vm_fds),
            len(process.vcpu_fds),
        )
        for process in processes
        if process.vm_fds
    ]
    return machines, [process.pid for process in processes if process.n_perf_events], unreadable


def _ftrace_kvm_instances(files: HostFiles) -> tuple[str, ...] | None:
    """Instances whose events/kvm/enable is not "0": "1" means all events, "X" some."""
    for tracefs in _TRACEFS:
        top = files.text(f"{tracefs}/events/kvm/enable")
        if top is None:
            continue
        states = {"": top} | {
            name: files.text(f"{tracefs}/instances/{name}/events/kvm/enable") or "0"
            for name in files.names(f"{tracefs}/instances")
        }
        return tuple(sorted(name for name, state in states.items() if state in ("1", "X")))
    return None


def _load_average(files: HostFiles) -> tuple[float, float, float] | None:
    try:
        one, five, fifteen, *_ = (files.text("/proc/loadavg") or "").split()
        return float(one), float(five), float(fifteen)
    except ValueError:
        return None
