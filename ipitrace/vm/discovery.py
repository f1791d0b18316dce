# SPDX-License-Identifier: Apache-2.0
"""Every KVM VM on the host, whatever runs it."""

import contextlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import PurePath

from ipitrace.errors import HostError
from ipitrace.host.access import require_initial_pid_namespace
from ipitrace.host.descriptors import Descriptors, scan_processes
from ipitrace.host.files import HOST, HostFiles
from ipitrace.host.fingerprint import read_fingerprint
from ipitrace.tracer.tracefs import ensure_debugfs
from ipitrace.tracer.vcpu_entries import entering_threads
from ipitrace.vm.apic import read_apic_mode
from ipitrace.vm.debugfs import VmDirectory, read_vm_directories
from ipitrace.vm.model import ApicMode, Evidence, Vcpu, VirtualMachine
from ipitrace.vm.names import libvirt_names, machine_names, scope_name
from ipitrace.vm.threads import allowed_cpus, find_in_kvm_run, read_started_at, thread_ids
from ipitrace.vm.vmm import CommandLine, parse_command_line

EntryReader = Callable[[], Mapping[int, int]]
ApicReader = Callable[[int, Collection[int]], tuple[ApicMode | None, str]]


@dataclass(frozen=True)
class Discovery:
    """What was found, and what could not be looked at."""

    vms: tuple[VirtualMachine, ...]
    unreadable_processes: int
    """Processes whose descriptors we may not see: they may hold VMs, too."""
    debugfs_absent: str | None
    """Why KVM's own directories could not be read; None when they were."""

    def to_dict(self) -> dict[str, object]:
        """The discovery as types that json accepts (tuples become arrays)."""
        return asdict(self)


@dataclass
class _Found:
    """One VM while it is being put together."""

    pid: int
    vm_fd: int
    tids: tuple[int, ...]
    vcpu_fds: dict[int, int] = field(default_factory=dict)  # descriptor by vCPU id
    directory: VmDirectory | None = None
    threads: dict[int, tuple[int, Evidence]] = field(default_factory=dict)  # by vCPU id
    unknown: dict[str, str] = field(default_factory=dict)

    def missing(self) -> dict[int, int]:
        """The descriptors of the vCPUs whose threads are not known yet."""
        return {index: fd for index, fd in self.vcpu_fds.items() if index not in self.threads}


def find_vms(files: HostFiles = HOST) -> tuple[VirtualMachine, ...]:
    """The VMs that can be seen from here, by pid; see discover()."""
    return discover(files).vms


def discover(
    files: HostFiles = HOST,
    apic_reader: ApicReader = read_apic_mode,
    entry_reader: EntryReader = entering_threads,
) -> Discovery:
    """Look for VMs once: some ms, and a second or two where KVM does not name the threads.

    Where debugfs is not mounted, and we may, it is mounted for this thread alone (see
    tracer.tracefs): call it in the main thread. Raises nothing for what cannot be seen,
    nor for a process that ends meanwhile.
    """
    processes, unreadable = scan_processes(files)
    holders = [process for process in processes if process.vm_fds]
    if not holders:
        return Discovery((), unreadable, None)
    directories, absent = _directories(files)
    found = [vm for process in holders for vm in _split(process, directories or (), files)]
    _find_threads(found, entry_reader, files)
    backend = read_fingerprint(files).kvm_backend
    machines = machine_names(files)
    lines = {vm.pid: _command_line(vm.pid, files) for vm in found}
    domains = libvirt_names() if any(line.uuid for line in lines.values()) else {}
    several = {vm.pid for vm in found if sum(other.pid == vm.pid for other in found) > 1}
    vms: list[VirtualMachine] = []
    for vm in found:
        started_at = read_started_at(vm.pid, files)
        if started_at is None:  # it ended while we looked
            continue
        line = lines[vm.pid]
        aliases = _aliases(vm, line, domains, machines, files, several=vm.pid in several)
        mode, why = apic_reader(vm.pid, list(vm.vcpu_fds.values()))
        unknown = vm.unknown | ({} if mode else {"apic_mode": why})
        if line.memory_bytes is None:
            unknown["memory_bytes"] = "its command line does not say"
        if backend is None:
            unknown["backend"] = "no KVM module is to be seen in /sys/module"
        vcpus = _vcpus(vm, files)
        if any(vcpu.tid is None for vcpu in vcpus):
            unknown["tid"] = (
                f"{absent or 'KVM does not name it in debugfs'}, and it was seen neither waiting "
                "in KVM_RUN nor at kvm_entry: it has not run yet, or runs without a pause"
            )
        vms.append(
            VirtualMachine(
                pid=vm.pid,
                name=aliases[0],
                aliases=aliases,
                vmm=line.vmm,
                vcpus=vcpus,
                memory_bytes=line.memory_bytes,
                started_at_ticks=started_at,
                apic_mode=mode,
                backend=backend,
                vm_fd=vm.vm_fd,
                creator_tid=vm.directory.creator_tid if vm.directory else None,
                unknown=unknown,
            )
        )
    return Discovery(tuple(vms), unreadable, absent)


def _directories(files: HostFiles) -> tuple[tuple[VmDirectory, ...] | None, str | None]:
    """KVM's directories, and why there are none."""
    try:
        require_initial_pid_namespace(files)
    except HostError:
        return None, "we are in a pid namespace, whose ids are not those that debugfs shows"
    directories = read_vm_directories(files)
    absent = None
    if directories is None and files == HOST:
        absent = ensure_debugfs()
        directories = read_vm_directories(files)
    if directories is None:
        return None, absent or "debugfs cannot be read"
    return directories, None


def _split(
    process: Descriptors, directories: Collection[VmDirectory], files: HostFiles
) -> list[_Found]:
    """The process's VMs, each with its vCPUs' descriptors.

    Nothing says which VM a vCPU's descriptor belongs to, so where there are several VMs it
    is counted to the last one opened before it. A descriptor without a directory, where
    others of the process have one, is a copy.
    """
    tids = thread_ids(process.pid, files)
    own = {d.vm_fd: d for d in directories if d.belongs_to(tids, process.vm_fds)}
    vm_fds = sorted(own) or list(process.vm_fds)
    found = [_Found(process.pid, fd, tids, directory=own.get(fd)) for fd in vm_fds]
    for position, (fd, index) in enumerate(sorted(process.vcpu_fds.items())):
        vm = next((vm for vm in reversed(found) if vm.vm_fd < fd), found[0])
        if index is None:
            vm.unknown["index"] = "this kernel does not name it: the descriptors' order was taken"
        vm.vcpu_fds.setdefault(position if index is None else index, fd)
    if len(found) > 1:
        for vm in found:
            vm.unknown["fd"] = "which of the process's VMs a vCPU's descriptor is of: by its order"
    return found


def _find_threads(found: Collection[_Found], entry_reader: EntryReader, files: HostFiles) -> None:
    """Fill in `threads`: by what KVM says, else by what can be seen, the cheapest look first."""
    for vm in found:
        named = vm.directory.vcpu_tids if vm.directory else {}
        vm.threads = {i: (tid, "debugfs") for i, tid in named.items() if tid is not None}
    wanted: dict[int, set[int]] = {}
    for vm in found:
        wanted.setdefault(vm.pid, set()).update(vm.missing().values())
    seen = find_in_kvm_run({pid: fds for pid, fds in wanted.items() if fds}, files)
    for vm in found:
        for index, fd in vm.missing().items():
            tid = seen[vm.pid].get(fd)
            if tid is not None:
                vm.threads[index] = (tid, "syscall")
    missing = [vm for vm in found if vm.missing()]
    if missing:
        with contextlib.suppress(HostError):
            _add_entering(missing, entry_reader())


def _add_entering(found: Collection[_Found], vcpu_of_tid: Mapping[int, int]) -> None:
    """An entry names the vCPU, not the VM: it decides only where one VM can be meant."""
    for tid, index in vcpu_of_tid.items():
        vms = [vm for vm in found if tid in vm.tids and index in vm.missing()]
        if len(vms) == 1:
            vms[0].threads[index] = (tid, "kvm_entry")


def _vcpus(vm: _Found, files: HostFiles) -> tuple[Vcpu, ...]:
    vcpus: list[Vcpu] = []
    for index in sorted(vm.vcpu_fds.keys() | vm.threads.keys()):
        tid, evidence = vm.threads.get(index, (None, None))
        cpus = () if tid is None else allowed_cpus(vm.pid, tid, files)
        vcpus.append(Vcpu(index, tid, cpus, evidence, vm.vcpu_fds.get(index)))
    return tuple(vcpus)


def _command_line(pid: int, files: HostFiles) -> CommandLine:
    arguments = (files.text(f"/proc/{pid}/cmdline") or "").split("\0")
    exe = (files.link(f"/proc/{pid}/exe") or arguments[0]).removesuffix(" (deleted)")
    program = PurePath(exe).name or files.text(f"/proc/{pid}/comm") or "?"
    return parse_command_line(program, arguments)


def _aliases(
    vm: _Found,
    line: CommandLine,
    domains: Mapping[str, str],
    machines: Mapping[int, str],
    files: HostFiles,
    *,
    several: bool,
) -> tuple[str, ...]:
    """Its names, the one people know it by first; the last is its own alone."""
    names: list[str | None] = [
        domains.get(line.uuid or ""),
        line.name,
        machines.get(vm.pid) or scope_name(files.text(f"/proc/{vm.pid}/cgroup")),
    ]
    pid = f"pid:{vm.pid}"
    numbers = [f"{pid}-{vm.vm_fd}", pid] if several else [pid]
    if several:
        names = [*(f"{name}-{vm.vm_fd}" for name in names if name), *names]
    return tuple(dict.fromkeys(name for name in [*names, *numbers] if name))
