# SPDX-License-Identifier: Apache-2.0
"""Other load on the host: VMs, too many vCPUs, other tracers."""

import shlex
from collections.abc import Iterator

from ipitrace.base.errors import UsageError
from ipitrace.base.units import processes
from ipitrace.doctor.model import Check
from ipitrace.host.cpus import allowed_cpus, choose_cpus, read_topology
from ipitrace.host.files import HOST, HostFiles
from ipitrace.host.neighbours import read_neighbours
from ipitrace.vm import Discovery, VirtualMachine

_MOST_ODD = 5
_BPF_STATS = "/proc/sys/kernel/bpf_stats_enabled"


def check_load(
    found: Discovery, vm: VirtualMachine | None, n_cpus: int | None, files: HostFiles = HOST
) -> Iterator[Check]:
    """Check overcommitment, the VM's pinning, other VMs, and other tracers."""
    yield _overcommit(found, vm, n_cpus)
    if vm is not None:
        yield _pinning(vm, files)
    yield _other_vms(found, vm)
    yield from _odd_processes(found)
    yield _tracers(files)


def _overcommit(found: Discovery, vm: VirtualMachine | None, n_cpus: int | None) -> Check:
    n_vcpus = sum(len(vm.vcpus) for vm in found.vms)
    if n_cpus is None:
        return Check("overcommit", "unknown", "the number of CPUs cannot be read")
    n_vms = len(found.vms)
    says = f"{n_vcpus} vCPUs in {n_vms} VM{'' if n_vms == 1 else 's'} on {n_cpus} CPUs"
    if n_vcpus > n_cpus:
        return Check(
            "overcommit",
            "warn",
            f"{says}: vCPUs wait for each other",
            "stop or move VMs until each vCPU has a CPU",
        )
    if not _all_seen(found):
        return Check("overcommit", "unknown", f"{says}; {_hidden(found)}", _with_rights(found, vm))
    return Check("overcommit", "ok", says)


def _pinning(vm: VirtualMachine, files: HostFiles) -> Check:
    unknown = [vcpu.index for vcpu in vm.vcpus if vcpu.tid is None]
    if unknown or not vm.vcpus:
        return Check("pinning", "unknown", vm.unknown.get("tid", "the VM has no vCPUs"))
    places = [vcpu.cpus for vcpu in vm.vcpus]
    how = _how_to_pin(vm, files)
    if any(len(place) != 1 for place in places) or len(set(places)) < len(places):
        return Check("pinning", "warn", f"the vCPUs of {vm.name} share CPUs or may move", how)
    core_of = {place.cpu: place.core for place in read_topology(files)}
    if any(place[0] not in core_of for place in places):
        says = f"each of {len(places)} vCPUs has a CPU; /sys does not show shared cores"
        return Check("pinning", "unknown", says)
    cores = {core_of[place[0]] for place in places}
    if len(cores) < len(places):
        return Check("pinning", "warn", f"{len(places)} vCPUs share {len(cores)} core(s)", how)
    return Check("pinning", "ok", f"each of {len(places)} vCPUs has a core of its own")


def _how_to_pin(vm: VirtualMachine, files: HostFiles) -> str:
    """The commands that pin to the CPUs that `ipitrace run` would choose."""
    try:
        chosen = choose_cpus(len(vm.vcpus), allowed_cpus(), read_topology(files)).cpus
    except UsageError:
        chosen = None
    if chosen is None:
        return "not possible: there are fewer CPUs than vCPUs"
    commands = [f"taskset -pc {cpu} {vcpu.tid}" for cpu, vcpu in zip(chosen, vm.vcpus, strict=True)]
    return "; ".join(commands)


def _other_vms(found: Discovery, vm: VirtualMachine | None) -> Check:
    others = [other.name for other in found.vms if vm is None or other.aliases != vm.aliases]
    if others:
        names = ", ".join(others)
        more = "" if _all_seen(found) else f"; {_hidden(found)}"
        return Check("VMs", "warn", f"{'running' if vm is None else 'others'}: {names}{more}")
    if not _all_seen(found):
        none = f"none visible; {_hidden(found)}"
        return Check("VMs", "unknown", none, _with_rights(found, vm))
    return Check("VMs", "ok", "none running" if vm is None else "no other")


def _hidden(found: Discovery) -> str:
    """The processes that could not be checked."""
    needs = f" (this needs {' and '.join(found.missing)})" if found.missing else ""
    n = found.unreadable_processes
    words = [found.unlisted] if found.unlisted else []
    words += [f"{processes(n)} cannot be inspected{needs}"] if n else []
    words += (
        [f"{processes(len(found.odd))} may have more VMs than could be read"] if found.odd else []
    )
    return "; ".join(words)


def _all_seen(found: Discovery) -> bool:
    return found.complete and not found.odd


def _with_rights(found: Discovery, vm: VirtualMachine | None) -> str:
    """The command that has the missing rights; empty if none is missing."""
    which = "" if vm is None else f" --vm {shlex.quote(vm.name)}"
    return f"sudo ipitrace doctor{which}" if found.missing else ""


def _odd_processes(found: Discovery) -> Iterator[Check]:
    if found.odd:
        named = "; ".join(odd.says for odd in found.odd[:_MOST_ODD])
        more = f"; {len(found.odd) - _MOST_ODD} more" if len(found.odd) > _MOST_ODD else ""
        yield Check("odd", "warn", f"{named}{more}", "list them: ipitrace list")


def _tracers(files: HostFiles) -> Check:
    around = read_neighbours(files)
    found: list[str] = []
    todo: list[str] = []
    if around.bpf_tracing_programs:
        found.append(f"{around.bpf_tracing_programs} BPF programs on kernel events")
        todo.append("bpftool prog")
    if around.perf_event_pids:
        found.append(f"perf events of pid {', '.join(map(str, around.perf_event_pids))}")
        todo.append("end these processes")
    if around.ftrace_kvm_instances:
        found.append("kvm events are enabled in tracefs")
        todo.append("echo 0 > /sys/kernel/tracing/events/kvm/enable")
    if files.text(_BPF_STATS) == "1":
        found.append("kernel.bpf_stats_enabled=1: every BPF program costs more")
        todo.append("sysctl -w kernel.bpf_stats_enabled=0")
    named = {"bpf_programs": "BPF programs", "ftrace_kvm_instances": "kvm events"}
    unknown = [f"{named[item]}: {why}" for item, why in around.unknown.items() if item in named]
    if around.unreadable_processes:
        hidden = processes(around.unreadable_processes)
        unknown.append(f"perf events: {hidden} cannot be inspected")
    if found:
        all_found = [*found, *(f"not known: {what}" for what in unknown)]
        return Check("tracers", "warn", "; ".join(all_found), "; ".join(todo))
    if unknown:
        return Check("tracers", "unknown", "; ".join(unknown))
    return Check("tracers", "ok", "no BPF program, no perf event, no kvm event enabled")
