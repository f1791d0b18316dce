# SPDX-License-Identifier: Apache-2.0
"""Discovery of all KVM VMs on the host, whatever VMM runs them.

The owner of a VMM, who may be any user, controls everything that is read about it. Every read
therefore has a limit. A process whose data cannot be read or is malformed is reported as odd.
"""

import contextlib
import functools
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import PurePath
from typing import Final

from ipitrace.base.errors import HostError
from ipitrace.host.access import missing_to_look_into_processes, require_initial_pid_namespace
from ipitrace.host.descriptors import Descriptors, scan_processes, unlisted_processes
from ipitrace.host.files import HOST, HostFiles
from ipitrace.host.fingerprint import read_fingerprint
from ipitrace.tracer.tracefs import ensure_debugfs
from ipitrace.tracer.vcpu_entries import entering_threads
from ipitrace.vm.apic import read_apic_mode
from ipitrace.vm.debugfs import VmDirectory, read_vm_directory, vm_directory_names
from ipitrace.vm.model import OWN_NAME, ApicMode, Evidence, OddProcess, Vcpu, VirtualMachine
from ipitrace.vm.names import libvirt_names, machine_names, scope_name
from ipitrace.vm.threads import (
    MOST_THREADS,
    allowed_cpus,
    find_in_kvm_run,
    read_started_at,
    read_uid,
    thread_ids,
)
from ipitrace.vm.vmm import CommandLine, parse_command_line

EntryReader = Callable[[], Mapping[int, int]]
ApicReader = Callable[[int, Collection[int]], tuple[ApicMode | None, str]]

COMMAND_LINE_BYTES: Final = 256 << 10  # libvirt's longest have about 50 KB; Linux allows 6 MiB
LONGEST_NAME: Final = 255


@dataclass(frozen=True)
class Discovery:
    """The VMs that were found, and the processes that could not be read."""

    vms: tuple[VirtualMachine, ...]
    unreadable_processes: int
    """Processes whose descriptors are unreadable: they may hold VMs, too."""
    debugfs_absent: str | None
    """Why KVM's debugfs directories could not be read; None if they were."""
    odd: tuple[OddProcess, ...] = ()
    """Processes of which data was ignored or rejected, with the reasons."""
    unlisted: str | None = None
    """Why /proc does not list all processes; None if it does."""
    missing: tuple[str, ...] = ()
    """The missing capabilities for reading the descriptors of any process."""

    @property
    def complete(self) -> bool:
        """Whether no VM can be missing because of insufficient privileges."""
        return not self.unreadable_processes and self.unlisted is None

    def to_dict(self) -> dict[str, object]:
        """The discovery as types that json supports (tuples become arrays)."""
        return asdict(self)


@dataclass
class _Found:
    """One VM while its data is being collected."""

    pid: int
    vm_fd: int
    tids: tuple[int, ...]
    vcpu_fds: dict[int, int] = field(default_factory=dict)  # descriptor by vCPU id
    directory: VmDirectory | None = None
    threads: dict[int, tuple[int, Evidence]] = field(default_factory=dict)  # by vCPU id
    unknown: dict[str, str] = field(default_factory=dict)

    def missing(self) -> dict[int, int]:
        """The descriptors of the vCPUs whose threads are unknown and can still be found."""
        known = self.threads.keys() | (self.directory.not_run if self.directory else set())
        return {index: fd for index, fd in self.vcpu_fds.items() if index not in known}


@dataclass(frozen=True)
class _Around:
    """Data that is read once for all VMs."""

    files: HostFiles
    apic_reader: ApicReader
    debugfs_absent: str | None
    backend: str | None
    machines: Mapping[int, str]
    domains: Mapping[str, str]
    n_vms: Mapping[int, int]
    odd: "_Oddities"


class _Oddities:
    """Collects the problems of each process."""

    def __init__(self, files: HostFiles) -> None:
        self._files = files
        self._why: dict[int, dict[str, None]] = {}

    def note(self, pid: int, *why: str) -> None:
        for text in why:
            self._why.setdefault(pid, {})[text] = None

    def listed(self) -> tuple[OddProcess, ...]:
        return tuple(
            OddProcess(
                pid,
                self._files.text(f"/proc/{pid}/comm") or "?",
                read_uid(pid, self._files),
                tuple(why),
            )
            for pid, why in sorted(self._why.items())
        )


def find_vms(
    files: HostFiles = HOST, only: Collection[int] | None = None
) -> tuple[VirtualMachine, ...]:
    """The VMs that are visible to this process, by pid; see discover()."""
    return discover(files, only=only).vms


def discover(
    files: HostFiles = HOST,
    apic_reader: ApicReader = read_apic_mode,
    entry_reader: EntryReader = entering_threads,
    *,
    only: Collection[int] | None = None,
) -> Discovery:
    """Search for VMs once: some ms, and a second or two if KVM does not report the threads.

    If debugfs is not mounted and mounting is permitted, it is mounted for this thread only (see
    tracer.tracefs): call it in the main thread. It does not raise for what cannot be seen, for a
    process that ends meanwhile, or for any data or behaviour of a process.

    Args:
        files: the kernel files to read.
        apic_reader: reads the APIC mode from a process's vCPUs.
        entry_reader: returns which threads enter which vCPUs.
        only: the processes to search; None for all.
    """
    processes, unreadable = scan_processes(files, only=only)
    missing = missing_to_look_into_processes(files)
    # hidepid does not hide processes from those who may trace any process.
    unlisted = unlisted_processes(files) if "CAP_SYS_PTRACE" in missing else None
    odd = _Oddities(files)
    for process in processes:
        odd.note(process.pid, *process.cut)
    holders = [process for process in processes if process.vm_fds]
    if not holders:
        return Discovery((), unreadable, None, odd.listed(), unlisted, missing)
    tids = {process.pid: thread_ids(process.pid, files) for process in holders}
    for pid, of_process in tids.items():
        if len(of_process) >= MOST_THREADS:
            odd.note(pid, f"it has {MOST_THREADS:,} threads or more: only the first are checked")
    creators = None if only is None else {tid for of_process in tids.values() for tid in of_process}
    directories, absent = _directories(files, creators)
    found = [vm for process in holders for vm in _split(process, tids[process.pid], directories)]
    _find_threads(found, entry_reader, files)
    lines = {pid: _command_line(pid, files, odd) for pid in tids}
    around = _Around(
        files,
        apic_reader,
        absent,
        _backend_here() if files == HOST else read_fingerprint(files).kvm_backend,
        machine_names(files),
        libvirt_names() if any(line.uuid for line in lines.values()) else {},
        Counter(vm.pid for vm in found),
        odd,
    )
    vms: list[VirtualMachine] = []
    for vm in found:
        try:
            machine = _machine(vm, lines[vm.pid], around)
        except Exception as error:  # noqa: BLE001 - one VMM must not prevent the report of others
            odd.note(vm.pid, f"its VM cannot be reported: {type(error).__name__}: {error}")
            continue
        if machine is not None:
            vms.append(machine)
    return Discovery(tuple(vms), unreadable, absent, odd.listed(), unlisted, missing)


@functools.cache
def _backend_here() -> str | None:
    """The backend of this host, cached: a module stays loaded while it has VMs."""
    return read_fingerprint().kvm_backend


def _machine(vm: _Found, line: CommandLine, around: _Around) -> VirtualMachine | None:
    """The complete VM; None if it ended during the search."""
    files = around.files
    started_at = read_started_at(vm.pid, files)
    if started_at is None:
        return None
    aliases = _aliases(vm, line, around)
    mode, why = around.apic_reader(vm.pid, list(vm.vcpu_fds.values()))
    unknown = vm.unknown | ({} if mode else {"apic_mode": why})
    if line.memory_bytes is None:
        unknown["memory_bytes"] = "its command line does not name it"
    if around.backend is None:
        unknown["backend"] = "/sys/module shows no KVM module"
    uid = read_uid(vm.pid, files)
    if uid is None:
        unknown["uid"] = "/proc does not show it"
    vcpus = _vcpus(vm, files)
    if any(vcpu.tid is None for vcpu in vcpus):
        unnamed = around.debugfs_absent or "KVM does not report it in debugfs"
        unknown["tid"] = (
            f"{unnamed}, and it was observed neither "
            "waiting in KVM_RUN nor at kvm_entry: it has not run yet, or runs without a pause"
        )
    return VirtualMachine(
        pid=vm.pid,
        name=aliases[0],
        aliases=aliases,
        vmm=line.vmm,
        vcpus=vcpus,
        memory_bytes=line.memory_bytes,
        started_at_ticks=started_at,
        apic_mode=mode,
        backend=around.backend,
        vm_fd=vm.vm_fd,
        creator_tid=vm.directory.creator_tid if vm.directory else None,
        unknown=unknown,
        uid=uid,
        confidential=line.confidential,
    )


def _directories(
    files: HostFiles, creators: Collection[int] | None
) -> tuple[Mapping[int, list[VmDirectory]], str | None]:
    """KVM's directories by each thread that they name, and the reason if there are none.

    With `creators`, only directories of VMs that these threads created are read. If there are
    none, all are read, because the thread that created a VM may have ended.
    """
    try:
        require_initial_pid_namespace(files)
    except HostError:
        return {}, "this process is in a pid namespace, whose ids differ from those in debugfs"
    names = vm_directory_names(files)
    absent = None
    if names is None and files == HOST:
        absent = ensure_debugfs()
        names = vm_directory_names(files)
    if names is None:
        return {}, absent or "debugfs cannot be read"
    if creators is not None:
        own = frozenset(n for n in names if int(n.partition("-")[0]) in creators)
        names = own or names
    by_thread: defaultdict[int, list[VmDirectory]] = defaultdict(list)
    for name in sorted(names):
        directory = read_vm_directory(name, files)
        if directory is not None:
            for tid in directory.threads():
                by_thread[tid].append(directory)
    return by_thread, None


def _split(
    process: Descriptors, tids: tuple[int, ...], directories: Mapping[int, list[VmDirectory]]
) -> list[_Found]:
    """The process's VMs, each with its vCPUs' descriptors.

    The kernel does not report to which VM a vCPU's descriptor belongs. If there are several VMs,
    it is assigned to the last VM opened before it. A descriptor without a directory, if other
    descriptors of the process have one, is a copy.
    """
    held = set(process.vm_fds)
    own = {d.vm_fd: d for tid in tids for d in directories.get(tid, ()) if d.vm_fd in held}
    vm_fds = sorted(own) or list(process.vm_fds)
    found = [_Found(process.pid, fd, tids, directory=own.get(fd)) for fd in vm_fds]
    for position, (fd, index) in enumerate(sorted(process.vcpu_fds.items())):
        vm = found[max(bisect_left(vm_fds, fd) - 1, 0)]
        if index is None:
            vm.unknown["index"] = "this kernel does not report it: descriptor order is assumed"
        vm.vcpu_fds.setdefault(position if index is None else index, fd)
    if len(found) > 1:
        for vm in found:
            vm.unknown["fd"] = "the VM of a vCPU's descriptor is assumed from descriptor order"
    return found


def _find_threads(found: Collection[_Found], entry_reader: EntryReader, files: HostFiles) -> None:
    """Fill in `threads`: from KVM, else from observation, the cheapest method first."""
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
    """Use entries for VMs that they identify: an entry names the vCPU, but not the VM."""
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


def _command_line(pid: int, files: HostFiles, odd: _Oddities) -> CommandLine:
    text = files.text(f"/proc/{pid}/cmdline", COMMAND_LINE_BYTES) or ""
    if len(text) >= COMMAND_LINE_BYTES:
        odd.note(pid, f"its command line is longer than {COMMAND_LINE_BYTES >> 10} KiB: not read")
        text = ""
    arguments = text.split("\0")
    exe = (files.link(f"/proc/{pid}/exe") or arguments[0]).removesuffix(" (deleted)")
    program = PurePath(exe).name or files.text(f"/proc/{pid}/comm") or "?"
    try:
        return parse_command_line(program[:LONGEST_NAME], arguments)
    except Exception as error:  # noqa: BLE001 - one VMM must not prevent the report of others
        odd.note(pid, f"its command line cannot be read: {type(error).__name__}: {error}")
        return CommandLine("?", None, None, None)


def _aliases(vm: _Found, line: CommandLine, around: _Around) -> tuple[str, ...]:
    """The VM's names: the one that its user knows first, the unique one last."""
    given: list[str | None] = [
        around.domains.get(line.uuid or ""),
        line.name,
        around.machines.get(vm.pid) or scope_name(around.files.text(f"/proc/{vm.pid}/cgroup")),
    ]
    names = [name for name in given if name and _acceptable(name, vm.pid, around.odd)]
    pid = f"{OWN_NAME}{vm.pid}"
    numbers = [pid]
    if around.n_vms[vm.pid] > 1:
        numbers = [f"{pid}-{vm.vm_fd}", pid]
        names = [*(f"{name}-{vm.vm_fd}" for name in names), *names]
    return tuple(dict.fromkeys([*names, *numbers]))


def _acceptable(name: str, pid: int, odd: _Oddities) -> bool:
    """Whether a VM may have this name; the reason is noted if not."""
    if len(name) > LONGEST_NAME:
        odd.note(pid, f"its name has {len(name):,} characters, above {LONGEST_NAME}: ignored")
    elif name.startswith(OWN_NAME):
        odd.note(pid, f"its name is like those that ipitrace gives ({name}): ignored")
    else:
        return True
    return False
