# SPDX-License-Identifier: Apache-2.0
import json
import os
from collections.abc import Callable, Mapping

from ipitrace.host.files import HostFiles
from ipitrace.host.neighbours import KvmProcess, read_neighbours

Make = Callable[[Mapping[str, str]], HostFiles]

PROC = {
    "/proc/loadavg": "0.52 1.58 2.59 3/815 12345\n",
    "/proc/1/comm": "systemd\n",
    "/proc/1/fd/0": "-> /dev/null",
    "/proc/40/comm": "qemu-system-x86\n",
    "/proc/40/fd/9": "-> anon_inode:kvm-vm",
    "/proc/40/fd/10": "-> anon_inode:kvm-vcpu:0",
    "/proc/40/fd/11": "-> anon_inode:kvm-vcpu",
    "/proc/40/fd/12": "-> anon_inode:kvm-vm-stats",
    "/proc/40/fd/13": "-> anon_inode:kvm-vcpu-stats",
    "/proc/50/comm": "perf\n",
    "/proc/50/fd/3": "-> anon_inode:[perf_event]",
    "/proc/60/comm": "hidden\n",
    "/proc/net/dev": "",
}
TRACEFS = {
    "/sys/kernel/tracing/events/kvm/enable": "0\n",
    "/sys/kernel/tracing/instances/mine/events/kvm/enable": "X\n",
    "/sys/kernel/tracing/instances/other/events/kvm/enable": "0\n",
    "/sys/kernel/tracing/instances/all/events/kvm/enable": "1\n",
}


def test_who_is_there(make_files: Make) -> None:
    found = read_neighbours(make_files(PROC | TRACEFS))
    assert found.kvm_processes == (KvmProcess(40, "qemu-system-x86", n_vms=1, n_vcpus=2),)
    assert found.perf_event_pids == (50,)
    assert found.unreadable_processes == 1
    assert found.ftrace_kvm_instances == ("all", "mine")
    assert found.load_average == (0.52, 1.58, 2.59)
    assert "ftrace_kvm_instances" not in found.unknown
    assert json.loads(json.dumps(found.result().to_dict()))["kvm_processes"][0]["n_vcpus"] == 2


def test_our_own_processes_are_no_neighbours(make_files: Make) -> None:
    own = str(os.getpid())
    files = make_files(
        PROC | {f"/proc/{own}/comm": "ipitrace\n", f"/proc/{own}/fd/5": "-> anon_inode:kvm-vm"}
    )
    assert [process.pid for process in read_neighbours(files).kvm_processes] == [40]
    assert read_neighbours(files, own_pids=(os.getpid(), 40, 50)).kvm_processes == ()
    assert read_neighbours(files, own_pids=(40, 50)).perf_event_pids == ()


def test_the_old_place_of_tracefs(make_files: Make) -> None:
    files = make_files({"/sys/kernel/debug/tracing/events/kvm/enable": "1\n"})
    assert read_neighbours(files).ftrace_kvm_instances == ("",)


def test_what_cannot_be_seen_is_unknown_with_a_reason(make_files: Make) -> None:
    found = read_neighbours(make_files({}))
    assert found.kvm_processes == ()
    assert found.ftrace_kvm_instances is None
    assert found.load_average is None
    assert {"ftrace_kvm_instances", "load_average"} <= set(found.unknown)
