# SPDX-License-Identifier: Apache-2.0
"""What a VMM's owner, or an odd kernel, may put where VMs are looked for."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import pytest
from vm_trees import (
    FIRECRACKER,
    IN_KVM_RUN,
    QEMU,
    QEMU_ARGV,
    QEMU_DEBUGFS,
    QEMU_FDS,
    QEMU_TASKS,
    debugfs,
    process,
)

from ipitrace.base.errors import UsageError
from ipitrace.host.files import HostFiles, parse_cpu_list
from ipitrace.render.list import render_list
from ipitrace.vm import ApicMode, Discovery, discover, pick, still_there
from ipitrace.vm.agent import agent_channel
from ipitrace.vm.threads import MOST_THREADS, kvm_run_fd
from ipitrace.vm.vmm import parse_command_line

Make = Callable[[Mapping[str, str]], HostFiles]


def mode(_pid: int, _fds: Collection[int]) -> tuple[ApicMode | None, str]:
    return "x2apic", ""


def look(files: HostFiles) -> Discovery:
    return discover(files, mode, dict)


@pytest.mark.parametrize(
    "changed",
    [
        {"/proc/700/stat": ") ) S 1"},
        {"/proc/700/stat": "700 (x) S " + "9" * 5_000 + " x" * 30},
        {"/proc/700/status": "Uid:\t" + "9" * 5_000},
        {"/proc/700/task/703/syscall": IN_KVM_RUN.replace("0xf", "0xzz")},
        {"/proc/700/task/703/status": "Cpus_allowed_list:\t0-99999999999\n"},
        {"/proc/700/fd/16": "-> anon_inode:kvm-vcpu:99999999999"},
        {"/proc/700/fd/16": "-> anon_inode:kvm-vcpu:\u0663"},
        {"/proc/700/fd/99999999999999": "-> anon_inode:kvm-vcpu:1"},
        {"/proc/" + "9" * 200 + "/comm": "x"},
        {"/sys/kernel/debug/kvm/" + "9" * 100 + "-11/vcpu0/pid": "7"},
        {"/sys/kernel/debug/kvm/700-11/vcpu" + "9" * 100 + "/pid": "7"},
        {"/sys/kernel/debug/kvm/700-11/vcpu1/pid": "9" * 5_000},
        {"/run/systemd/machines/x": "LEADER=" + "9" * 5_000},
        {"/proc/700/cgroup": "machine-\\x00\\xff.scope" * 1_000},
        {"/proc/700/cmdline": "\0" * 10_000},
        {"/proc/700/cmdline": ""},
    ],
)
def test_none_stops_the_others(make_files: Make, changed: dict[str, str]) -> None:
    files = make_files({**QEMU, **FIRECRACKER, **QEMU_DEBUGFS, **changed})
    found = look(files)
    assert "fc-1" in {vm.name for vm in found.vms}
    render_list(found)


def test_a_defect_of_ours_is_told_beside_the_others(make_files: Make) -> None:
    def fail(pid: int, _fds: Collection[int]) -> tuple[ApicMode | None, str]:
        if pid == 700:
            raise ZeroDivisionError("whatever")
        return "x2apic", ""

    found = discover(make_files(QEMU | FIRECRACKER), fail, dict)
    assert [vm.pid for vm in found.vms] == [800]
    [odd] = found.odd
    assert (odd.pid, odd.uid) == (700, 107)
    assert "ZeroDivisionError: whatever" in odd.says
    assert "ZeroDivisionError" in render_list(found)


@pytest.mark.parametrize("memory", ["9" * 5_000, "9" * 19 + "t", "\u0663", "4294967296t"])
def test_no_such_amount_of_memory(memory: str) -> None:
    line = parse_command_line("qemu-kvm", ["qemu-kvm", "-m", memory])
    assert line.memory_bytes is None


def test_lists_of_cpus_have_an_end() -> None:
    with pytest.raises(ValueError, match=r"the CPU number [0-9]+ is out of range"):
        parse_cpu_list("0-99999999999")


def test_no_descriptor() -> None:
    assert kvm_run_fd("16 0xzz 0xae80 0x0 0x0 0x5 0x5 0x7 0x7") is None


def test_thousands_of_threads_are_told(make_files: Make) -> None:
    tasks = {**QEMU_TASKS, **dict.fromkeys(range(10_000, 10_000 + MOST_THREADS), "running")}
    files = make_files(process(700, QEMU_ARGV, QEMU_FDS, tasks) | QEMU_DEBUGFS)
    [odd] = look(files).odd
    assert f"{MOST_THREADS:,} threads or more" in odd.says


def test_nobody_takes_the_names_that_ipitrace_gives(make_files: Make) -> None:
    argv = ("/usr/bin/qemu-kvm", "-name", "pid:800")
    files = make_files(process(700, argv, QEMU_FDS, QEMU_TASKS) | FIRECRACKER)
    found = look(files)
    assert pick(found, "pid:800").pid == 800
    assert "ignored" in found.odd[0].says


def test_of_whom_the_vms_of_one_name_are(make_files: Make) -> None:
    argv = ("/usr/bin/qemu-kvm", "-name", "guest1")
    one = process(700, argv, QEMU_FDS, QEMU_TASKS, uid=107)
    files = make_files(one | process(900, argv, QEMU_FDS, {900: "running"}, uid=1001))
    found = look(files)
    with pytest.raises(UsageError) as raised:
        pick(found, "guest1")
    assert "pid:700 (user 107), pid:900 (user 1001)" in raised.value.hint
    assert "2 VMs have the name 'guest1'" in render_list(found)


@pytest.mark.parametrize(
    "device",
    [
        '{"a":' * 10_000 + "1" + "}" * 10_000,
        '{"name":"org.qemu.guest_agent.0","chardev":["x"]}',
        '{"name":"org.qemu.guest_agent.0","chardev":{"x":1}}',
        '{"n":' + "9" * 5_000 + "}",
        "{",
    ],
)
def test_devices_that_are_none(device: str) -> None:
    chardev = '{"id":["x"],"path":5}'
    assert agent_channel(["-device", device, "-chardev", chardev]) is None


@dataclass(frozen=True)
class Counted(HostFiles):
    """Files that note what was looked at."""

    looked_at: list[str] = field(default_factory=list, compare=False)

    def _at(self, path: str) -> str:
        self.looked_at.append(path)
        return super()._at(path)


def test_a_check_of_one_vm_does_not_grow_with_the_others(make_files: Make) -> None:
    crowd = {k: v for i in range(50) for k, v in debugfs(5_000 + i, 11, {0: 6_000 + i}).items()}
    made = make_files(QEMU | QEMU_DEBUGFS | crowd)
    [vm] = look(made).vms
    files = Counted(made.root)
    assert still_there(vm, files) is None
    assert not [path for path in files.looked_at if "/kvm/5" in path]


def test_a_vcpu_that_has_not_run_is_not_searched_for(make_files: Make) -> None:
    """KVM says so: 20 looks at all threads would find nothing."""
    files = Counted(make_files(QEMU | debugfs(700, 11, {0: 0, 1: 703})).root)
    [vm] = discover(files, mode, dict).vms
    assert [vcpu.tid for vcpu in vm.vcpus] == [None, 703]
    assert not [path for path in files.looked_at if path.endswith("/syscall")]


def test_sudo_is_no_advice_to_who_lacks_no_right() -> None:
    for missing, advised in (((), False), (("CAP_SYS_PTRACE",), True)):
        with pytest.raises(UsageError) as caught:
            pick(Discovery((), 1, None, missing=missing), "web")
        assert "1 process cannot be inspected" in caught.value.hint
        assert ("sudo" in caught.value.hint) == advised
