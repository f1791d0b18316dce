# SPDX-License-Identifier: Apache-2.0
"""A thread that runs a vCPU of one VM and then of another: any VMM's process may do that."""

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

pytestmark = pytest.mark.live

# Two VMs, each with a vCPU that waits for its start in KVM_RUN, and one thread for both.
_VMM = """
import fcntl, mmap, os, signal, sys, threading
kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
def waiting_vcpu():
    vm = fcntl.ioctl(kvm, 0xAE01, 0)
    fcntl.ioctl(vm, 0xAE60, 0)
    vcpu = fcntl.ioctl(vm, 0xAE41, 1)
    return vcpu, mmap.mmap(vcpu, 4096)
def enter(vcpu):
    try:
        fcntl.ioctl(vcpu, 0xAE80, 0)
    except InterruptedError:
        pass
def work():
    enter(first)
    enter(waiting_vcpu()[0])
signal.signal(signal.SIGUSR1, lambda *_: None)
first, page = waiting_vcpu()
thread = threading.Thread(target=work, daemon=True)
thread.start()
print("ready", flush=True)
sys.stdin.readline()
page[1] = 1  # immediate_exit
signal.pthread_kill(thread.ident, signal.SIGUSR1)
sys.stdin.readline()
"""


@pytest.fixture
def vmm() -> Iterator["subprocess.Popen[str]"]:
    words = [sys.executable, "-S", "-c", _VMM]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def test_the_thread_counts_for_the_vm_that_was_seen_last(vmm: "subprocess.Popen[str]") -> None:
    words = [sys.executable, "-m", "ipitrace", "watch", "--json", "--interval", "0.5"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as watch:
        try:
            assert watch.stdout is not None
            intervals = map(json.loads, watch.stdout)

            def until_there_are(n: int) -> list[list[int]]:
                """What is not watched of each of that process's VMs."""
                for interval in intervals:
                    mine = [vm["unwatched"] for vm in interval["vms"] if vm["pid"] == vmm.pid]
                    if len(mine) == n:
                        return mine
                raise AssertionError

            assert until_there_are(1) == [[]]
            assert vmm.stdin is not None
            vmm.stdin.write("\n")
            vmm.stdin.flush()
            until_there_are(2)
            assert until_there_are(2) == [[1], []]
            vmm.kill()
            until_there_are(0)
            until_there_are(0)
        finally:
            watch.terminate()
        watch.stdout.read()
    assert watch.returncode == 0
