# SPDX-License-Identifier: Apache-2.0
"""Discovery against real VMs in other processes."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from checks import assert_sound_list
from guests import Guest, micro_guest, qemu_guest, until

from ipitrace.base.errors import UsageError
from ipitrace.base.units import MIB
from ipitrace.host.descriptors import read_descriptors
from ipitrace.host.files import HostFiles
from ipitrace.tracer.vcpu_entries import entering_threads
from ipitrace.vm import VirtualMachine, discover, find_vms, resolve_vm, still_there
from ipitrace.vm.threads import find_in_kvm_run

pytestmark = pytest.mark.live("root", "kvm")


@pytest.fixture(scope="module")
def micro() -> Iterator[Guest]:
    """A micro-guest whose target waits in HLT between IPIs."""
    with micro_guest("unicast-blocked") as guest:
        yield guest


def found(guest: Guest) -> VirtualMachine:
    return next(vm for vm in find_vms() if vm.pid == guest.pid)


def whole(guest: Guest) -> VirtualMachine | None:
    """The VM, once each vCPU has a thread that ran it and came back."""
    vms = [vm for vm in find_vms() if vm.pid == guest.pid and len(vm.tids) == len(guest.tids)]
    return vms[0] if vms and vms[0].apic_mode else None


def run_cli(*arguments: str, user: int | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ipitrace", *arguments],
        capture_output=True,
        text=True,
        check=False,
        user=user,
        extra_groups=None if user is None else [],
    )


def test_a_micro_guest_is_found(micro: Guest) -> None:
    vm = found(micro)
    assert [vcpu.index for vcpu in vm.vcpus] == [0, 1]
    assert vm.tids == micro.tids
    assert {vcpu.cpus for vcpu in vm.vcpus} == {tuple(sorted(os.sched_getaffinity(micro.pid)))}
    assert vm.apic_mode == "x2apic"
    assert vm.name == f"pid:{micro.pid}"
    assert vm.memory_bytes is None
    assert vm.unknown["memory_bytes"]
    assert resolve_vm(vm.name) == vm
    assert still_there(vm) is None


def test_an_xapic_guest_is_told_from_an_x2apic_one() -> None:
    with micro_guest("unicast-running-xapic") as guest:
        assert found(guest).apic_mode == "xapic"


def test_pinning_is_seen() -> None:
    cpu = max(os.sched_getaffinity(0))
    with micro_guest() as guest:
        os.sched_setaffinity(guest.tids[1], {cpu})
        assert [vcpu.cpus for vcpu in found(guest).vcpus][1] == (cpu,)


def test_a_waiting_vcpu_is_told_by_its_system_call(micro: Guest) -> None:
    descriptors = read_descriptors(micro.pid)
    assert descriptors is not None
    fd = next(fd for fd, index in descriptors.vcpu_fds.items() if index == 1)
    assert find_in_kvm_run({micro.pid: [fd]}) == {micro.pid: {fd: micro.tids[1]}}


@pytest.mark.live("root", "kvm", "bpf")
def test_a_running_vcpu_is_told_by_what_it_does(micro: Guest) -> None:
    """A KVM without kvm_entry has no APICv either, and so tells each EOI's local APIC."""
    by_tid = entering_threads(duration_s=1.0)
    if not by_tid.keys() & {*micro.tids}:
        by_tid = entering_threads("kvm_eoi", "apicid", 1.0)
    assert by_tid[micro.tids[1]] == 1
    assert by_tid.get(micro.tids[0], 0) == 0


def test_guests_of_two_processes_are_two(micro: Guest) -> None:
    with micro_guest(n_vcpus=3) as other:
        vms = {vm.pid: vm for vm in find_vms()}
        assert vms[micro.pid].tids == micro.tids
        assert vms[other.pid].tids == other.tids
        with pytest.raises(UsageError, match="no VM 'guest1'") as raised:
            resolve_vm("guest1")
        assert f"pid:{micro.pid}" in raised.value.hint
        assert f"pid:{other.pid}" in raised.value.hint


def test_qemu_is_found_by_its_name() -> None:
    with qemu_guest("-name", "guest=ipitrace-test,debug-threads=on") as guest:
        vm = until(lambda: whole(guest))
        assert vm == resolve_vm("ipitrace-test") == resolve_vm(f"pid:{guest.pid}")
        assert vm.vmm == "QEMU"
        assert vm.tids == guest.tids
        assert vm.memory_bytes == 64 * MIB
        assert vm.apic_mode in ("xapic", "x2apic")
        assert still_there(vm) is None
        guest.kill()
        assert still_there(vm) == "its process has ended"


def test_an_ambiguous_name_lists_the_candidates() -> None:
    name = "-name", "guest=ipitrace-twin,debug-threads=on"
    with qemu_guest(*name) as one, qemu_guest(*name) as other:
        with pytest.raises(UsageError, match="2 VMs have the name 'ipitrace-twin'") as raised:
            resolve_vm("ipitrace-twin")
        assert f"pid:{one.pid}, pid:{other.pid}" in raised.value.hint


def test_kvms_worker_is_no_vcpu() -> None:
    """It is a copy of a vCPU's thread, with that thread's system call."""
    with qemu_guest("-name", "ipitrace-worker,debug-threads=on") as guest:
        until(lambda: whole(guest))
        descriptors = read_descriptors(guest.pid)
        assert descriptors is not None
        by_fd = find_in_kvm_run({guest.pid: descriptors.vcpu_fds})[guest.pid]
        told = {descriptors.vcpu_fds[fd]: tid for fd, tid in by_fd.items()}
        assert told.get(0, guest.tids[0]) == guest.tids[0]
        assert told.get(1, guest.tids[1]) == guest.tids[1]


# A VM that grows a vCPU at one line of input, and is closed at the next.
GROWING = """
import fcntl, os, sys
vm = fcntl.ioctl(open("/dev/kvm", "r+b", buffering=0), 0xAE01, 0)
fds = [vm, fcntl.ioctl(vm, 0xAE41, 0)]
print("one", flush=True)
sys.stdin.readline()
fds.append(fcntl.ioctl(vm, 0xAE41, 1))
print("two", flush=True)
sys.stdin.readline()
for fd in fds:
    os.close(fd)
print("none", flush=True)
sys.stdin.readline()
"""


def test_a_vm_that_grows_and_one_that_is_closed() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", GROWING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "one\n"
        vm = resolve_vm(f"pid:{process.pid}")
        assert vm.tids == ()
        assert "has not run yet" in vm.unknown["tid"]
        assert vm.apic_mode is None
        assert still_there(vm) is None
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "two\n"
        assert still_there(vm) == "vCPU 1 was added"
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "none\n"
        assert still_there(vm) == "its process has closed it"
        process.communicate()
        assert still_there(vm) == "its process has ended"


@dataclass(frozen=True)
class Deadly(HostFiles):
    """The host's files; the guest dies as soon as `where` is looked at."""

    guest: Guest | None = None
    where: str = ""

    def _at(self, path: str) -> str:
        if self.guest is not None and path.endswith(self.where):
            self.guest.kill()
        return super()._at(path)


@pytest.mark.parametrize("last", ["fd", "task", "stat", "cmdline", "status"])
def test_a_guest_that_dies_while_it_is_looked_at(micro: Guest, last: str) -> None:
    with micro_guest() as guest:
        where = f"/{guest.tids[1]}/status" if last == "status" else f"/proc/{guest.pid}/{last}"
        vms = discover(Deadly(guest=guest, where=where)).vms
        assert guest.process.poll() is not None
        assert micro.pid in {vm.pid for vm in vms}
        if last != "status":  # by then it has been seen whole
            assert guest.pid not in {vm.pid for vm in vms}


def test_list_prints_what_was_found(micro: Guest) -> None:
    done = run_cli("list", "--json")
    assert done.returncode == 0, done.stderr
    everything = json.loads(done.stdout)
    assert_sound_list(everything)
    [listed] = [vm for vm in everything["vms"] if vm["pid"] == micro.pid]
    assert [vcpu["tid"] for vcpu in listed["vcpus"]] == list(micro.tids)
    text = run_cli("list").stdout
    assert f"0: {micro.tids[0]}, 1: {micro.tids[1]}" in text


def test_list_leaves_no_mount_behind() -> None:
    before = Path("/proc/self/mounts").read_text()
    assert run_cli("list").returncode == 0
    assert Path("/proc/self/mounts").read_text() == before


def test_an_ordinary_user_is_told_that_there_may_be_more(micro: Guest) -> None:
    done = run_cli("list", user=65534)
    assert done.returncode == 0
    assert f"{micro.pid}" not in done.stdout
    assert "sudo ipitrace list" in done.stdout
