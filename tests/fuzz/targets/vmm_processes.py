# SPDX-License-Identifier: Apache-2.0
r"""A process that looks like a VMM: its files under /proc and debugfs, parts between \xff."""

from ipitrace.render.list import render_list
from ipitrace.vm.agent import agent_of
from ipitrace.vm.discovery import discover
from ipitrace.vm.identity import changes

from ..files import tree
from ..pieces import no_waiting

_PID = 100
_P = f"/proc/{_PID}"
_FILES = (
    *(f"{_P}/cmdline", f"{_P}/stat", f"{_P}/task/101/syscall", f"{_P}/task/101/status"),
    *(f"{_P}/cgroup", f"{_P}/comm", "/sys/kernel/debug/kvm/100-9/vcpu0/pid"),
    *("/run/systemd/machines/guest1", f"{_P}/status", "/proc/cpuinfo"),
    "/run/libvirt/qemu/guest1.pid",
)
_USUAL = {f"{_P}/stat": b"100 (kvm) S 1 100 100 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 355162 1 1"}
_DEFECTS = ("its VM cannot be reported", "its command line cannot be read")


def fuzz(data: bytes) -> None:
    parts = data.split(b"\xff")
    contents = {path: parts[i] if i < len(parts) else b"" for i, path in enumerate(_FILES)}
    contents = {path: content or _USUAL.get(path, b"") for path, content in contents.items()}
    links = {
        f"{_P}/fd/9": "anon_inode:kvm-vm",
        f"{_P}/fd/15": "anon_inode:kvm-vcpu:0",
        f"{_P}/exe": "/usr/bin/qemu-system-x86_64",
    }
    files = tree(contents, links)
    with no_waiting():
        found = discover(files, lambda _pid, _fds: (None, "not looked"), lambda: {101: 0})
        # What an owner may bring about has words of its own; these are for our defects.
        assert not any(why.startswith(_DEFECTS) for odd in found.odd for why in odd.why)
        render_list(found)
        for vm in found.vms:
            vm.to_dict()
            changes(vm, files)
            agent_of(vm, files)
