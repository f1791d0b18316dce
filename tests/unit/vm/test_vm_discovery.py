# SPDX-License-Identifier: Apache-2.0
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from vm_trees import (
    FIRECRACKER,
    POLLING,
    QEMU,
    QEMU_ARGV,
    QEMU_DEBUGFS,
    QEMU_FDS,
    QEMU_TASKS,
    RUNNING,
    debugfs,
    in_kvm_run,
    process,
)

from ipitrace.base.errors import HostError, UsageError
from ipitrace.base.units import MIB
from ipitrace.host.files import HostFiles
from ipitrace.vm import ApicMode, Discovery, Vcpu, VirtualMachine, discover, pick, still_there

Make = Callable[[Mapping[str, str]], HostFiles]

MODULES = {"/sys/module/kvm/parameters/halt_poll_ns": "0", "/sys/module/kvm_amd/refcnt": "2"}
INITIAL = {"/proc/self/ns/pid": "-> pid:[4026531836]"}


def look(files: HostFiles, entering: Mapping[int, int] | None = None) -> Discovery:
    """Discover, asking no real process for its APIC mode and no real KVM for entries."""

    def mode(_pid: int, _fds: Collection[int]) -> tuple[ApicMode | None, str]:
        return "x2apic", ""

    return discover(files, mode, lambda: entering or {})


def only(files: HostFiles) -> VirtualMachine:
    [vm] = look(files).vms
    return vm


def test_qemu_under_libvirt(make_files: Make) -> None:
    vm = only(make_files(QEMU | QEMU_DEBUGFS | MODULES))
    assert vm.aliases == ("web,1", "qemu-1-web", "pid:700")
    assert vm.name == "web,1"
    assert vm.vmm == "QEMU"
    assert vm.memory_bytes == 2048 * MIB
    assert vm.started_at_ticks == 355162
    assert vm.backend == "kvm_amd"
    assert vm.vcpus == (
        Vcpu(0, 702, (1,), "debugfs", 12),
        Vcpu(1, 703, (2, 3), "debugfs", 15),
    )
    assert (vm.creator_tid, vm.vm_fd) == (700, 11)
    assert vm.unknown == {}
    json.dumps(vm.to_dict())


def test_registered_with_systemd_by_hand(make_files: Make) -> None:
    machines = {
        "/run/systemd/machines/rawhide": "NAME=rawhide\nCLASS=vm\nLEADER=800\n",
        "/run/systemd/machines/unit:machine-rawhide.scope": "-> rawhide",
    }
    vm = only(make_files(FIRECRACKER | machines))
    assert vm.aliases == ("fc-1", "rawhide", "pid:800")


def test_threads_by_system_call_where_kvm_does_not_name_them(make_files: Make) -> None:
    found = look(make_files(QEMU | FIRECRACKER | debugfs(700, 11, {0: None, 1: None})))
    qemu, firecracker = found.vms
    assert qemu.vcpus[1] == Vcpu(1, 703, (2, 3), "syscall", 15)
    assert qemu.vcpus[0] == Vcpu(0, None, (), None, 12)
    assert "KVM_RUN" in qemu.unknown["tid"]
    assert firecracker.vcpus == (Vcpu(0, 801, (0, 1, 2, 3), "syscall", 10),)
    assert "tid" not in firecracker.unknown


def test_threads_by_entries_where_they_never_wait(make_files: Make) -> None:
    qemu, firecracker = look(make_files(QEMU | FIRECRACKER), {702: 0, 703: 5, 31: 0}).vms
    assert qemu.vcpus[0] == Vcpu(0, 702, (1,), "kvm_entry", 12)
    assert qemu.vcpus[1].evidence == "syscall"
    assert firecracker.tids == (801,)
    assert "tid" not in qemu.unknown


def test_entries_without_the_right_to_see_them(make_files: Make) -> None:
    def refuse() -> Mapping[int, int]:
        raise HostError("no rights", "")

    [vm] = discover(make_files(QEMU), lambda _pid, _fds: ("xapic", ""), refuse).vms
    assert vm.tids == (703,)


def test_an_old_kernel_does_not_number_vcpus(make_files: Make) -> None:
    fds = {5: "kvm-vm", 6: "kvm-vcpu", 7: "kvm-vcpu"}
    tasks = {900: POLLING, 901: in_kvm_run(6), 902: in_kvm_run(7)}
    vm = only(make_files(process(900, ("/usr/bin/lkvm", "run", "--mem", "256"), fds, tasks)))
    assert [(vcpu.index, vcpu.tid) for vcpu in vm.vcpus] == [(0, 901), (1, 902)]
    assert "order" in vm.unknown["index"]
    assert (vm.vmm, vm.memory_bytes) == ("kvmtool", 256 * MIB)


def test_two_vms_in_one_process(make_files: Make) -> None:
    fds = {5: "kvm-vm", 6: "kvm-vcpu:0", 7: "kvm-vm", 8: "kvm-vcpu:0", 9: "kvm-vm"}
    tasks = {900: POLLING, 901: RUNNING, 902: RUNNING}
    made = process(900, ("/opt/sandbox",), fds, tasks)
    files = make_files(made | debugfs(900, 5, {0: 901}) | debugfs(901, 7, {0: 902}))
    found = look(files)
    assert [(vm.vm_fd, vm.tids, vm.vcpus[0].fd) for vm in found.vms] == [
        (5, (901,), 6),
        (7, (902,), 8),
    ]
    assert pick(found, "pid:900-7").vm_fd == 7
    with pytest.raises(UsageError, match="2 VMs have the name 'pid:900'") as raised:
        pick(found, "pid:900")
    assert "pid:900-5, pid:900-7" in raised.value.hint
    assert found.vms[0].vmm == "unknown VMM (sandbox)"


def test_a_vm_whose_creator_thread_has_ended(make_files: Make) -> None:
    vm = only(make_files(QEMU | debugfs(699, 11, {0: 702, 1: 703})))
    assert vm.creator_tid == 699
    assert vm.tids == (702, 703)


def test_another_processs_directory_is_not_taken(make_files: Make) -> None:
    vm = only(make_files(FIRECRACKER | debugfs(5, 9, {0: 6})))
    assert vm.creator_tid is None
    assert vm.tids == (801,)


def test_in_a_pid_namespace_debugfs_speaks_of_other_ids(make_files: Make) -> None:
    inside = {"/proc/self/ns/pid": "-> pid:[4026532201]"}
    found = look(make_files(QEMU | debugfs(700, 11, {0: 703, 1: 702}) | inside))
    assert found.debugfs_absent
    assert found.vms[0].tids == (703,)


def test_no_vm(make_files: Make) -> None:
    found = look(make_files({"/proc/1/fd/0": "-> /dev/null", "/proc/2/comm": "hidden"}))
    assert found.vms == ()
    assert found.unreadable_processes == 1
    with pytest.raises(UsageError, match="no VM 'a'") as raised:
        pick(found, "a")
    assert "No KVM VM" in raised.value.hint
    assert "sudo" in raised.value.hint


def test_a_zombie_is_no_vm(make_files: Make) -> None:
    files = make_files(QEMU)
    stat = files.root / "proc/700/stat"
    stat.write_text(stat.read_text().replace(") S ", ") Z "))
    assert look(files).vms == ()


def test_unreadable_apic_page(make_files: Make) -> None:
    [vm] = discover(make_files(QEMU), lambda _pid, _fds: (None, "not allowed"), dict).vms
    assert vm.apic_mode is None
    assert vm.unknown["apic_mode"] == "not allowed"


def remove(files: HostFiles, path: str) -> None:
    at = Path(f"{files.root}{path}")
    for inner in at.iterdir() if at.is_dir() and not at.is_symlink() else ():
        inner.unlink()
    at.rmdir() if at.is_dir() and not at.is_symlink() else at.unlink()


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({}, None),
        (
            {"/proc/700/stat": QEMU["/proc/700/stat"].replace("355162", "355163")},
            "its process has ended",
        ),
        ({"/sys/kernel/debug/kvm/700-11/vcpu1/pid": "705"}, "vCPU 1 runs in another thread now"),
        ({"/sys/kernel/debug/kvm/700-11/vcpu2/pid": "705"}, "vCPU 2 was added"),
        ({"/sys/kernel/debug/kvm/700-11/vcpu1/pid": "0"}, None),
    ],
)
def test_a_changed_vm_is_noticed(
    make_files: Make, changed: dict[str, str], why: str | None
) -> None:
    files = make_files(QEMU | QEMU_DEBUGFS)
    vm = only(files)
    make_files(changed)
    assert still_there(vm, files) == why


@pytest.mark.parametrize(
    ("gone", "why"),
    [
        ("/proc/700/stat", "its process has ended"),
        ("/proc/700/fd/11", "its process has closed it"),
        ("/proc/700/fd/15", "vCPU 1 is gone"),
        ("/proc/700/task/702", "the thread of vCPU 0 has ended"),
    ],
)
def test_a_missing_part_is_noticed(make_files: Make, gone: str, why: str) -> None:
    files = make_files(QEMU | QEMU_DEBUGFS)
    vm = only(files)
    remove(files, gone)
    assert still_there(vm, files) == why


def test_without_debugfs_threads_are_still_watched(make_files: Make) -> None:
    files = make_files(process(700, QEMU_ARGV, QEMU_FDS, QEMU_TASKS))
    vm = only(files)
    assert vm.tids == (703,)
    assert still_there(vm, files) is None
    assert still_there(replace(vm, started_at_ticks=1), files)
    more = {"/proc/700/fd/16": "-> anon_inode:kvm-vcpu:2"}
    assert still_there(vm, make_files(more)) == "vCPU 2 was added"
    remove(files, "/proc/700/fd/16")
    remove(files, "/proc/700/task/703")
    assert still_there(vm, files) == "the thread of vCPU 1 has ended"
