# SPDX-License-Identifier: Apache-2.0
"""Whatever one user's VMM says or does, root's commands see the other VMs, and say what is odd."""

import json
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from checks import assert_sound_list
from guests import Guest, micro_guest
from odd_vmms import python_named, run_as, vmm
from other_user import NOBODY

from ipitrace.host.descriptors import MOST_DESCRIPTORS
from ipitrace.vm import Discovery, discover
from ipitrace.vm.apic import read_apic_mode

pytestmark = pytest.mark.live("root", "kvm")

BOUNDED_S = 30.0  # each of these took minutes, or for ever, or ended in a traceback


@pytest.fixture(scope="module")
def good() -> Iterator[Guest]:
    with micro_guest("unicast-blocked") as guest:
        yield guest


def look(good: Guest) -> Discovery:
    began_s = time.monotonic()
    found = discover()
    assert time.monotonic() - began_s < BOUNDED_S
    assert good.tids in {vm.tids for vm in found.vms}, "the other VM is there as ever"
    return found


def whole(found: Discovery, pid: int) -> tuple[Any, str]:
    """The VM of that process, and what is odd about it."""
    [vm] = [vm for vm in found.vms if vm.pid == pid]
    return vm, "; ".join(why for odd in found.odd if odd.pid == pid for why in odd.why)


def test_an_endless_number_of_bytes(good: Guest, tmp_path: Path) -> None:
    qemu = python_named(tmp_path, "qemu-system-x86_64")
    with vmm("-m", "9" * 5_000, "-name", "guest1", program=qemu) as process:
        vm, _ = whole(look(good), process.pid)
        assert (vm.name, vm.uid, vm.memory_bytes) == ("guest1", NOBODY, None)
        for words in (["list"], ["list", "--json"], ["doctor"]):
            done = run_as(words)
            assert "Traceback" not in done.stderr
            assert done.returncode == 0, done.stderr


SWAP = (
    "sys.stdin.readline(); memfd = os.memfd_create('x'); os.dup2(memfd, vcpu); "
    "print('swapped', flush=True)"
)


def test_a_vcpu_s_descriptor_swapped_for_an_empty_file(good: Guest) -> None:
    """The exchange comes between the list of descriptors and the look at the page."""
    odd = f"threading.Thread(target=lambda: exec({SWAP!r}, globals()), daemon=True).start()"
    with vmm(odd=odd) as process:

        def late(pid: int, fds: Any) -> Any:
            if pid == process.pid:
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write("\n")
                process.stdin.flush()
                assert process.stdout.readline() == "swapped\n"
            return read_apic_mode(pid, fds)

        found = discover(apic_reader=late)
        vm, _ = whole(found, process.pid)
        assert "is no longer a vCPU" in vm.unknown["apic_mode"]
        assert good.tids in {vm.tids for vm in found.vms}


def test_a_command_line_of_a_mebibyte(good: Guest, tmp_path: Path) -> None:
    qemu = python_named(tmp_path, "qemu-system-x86_64")
    parts = ["x" * 100_000] * 10
    with vmm("-name", "guest1", *parts, program=qemu) as process:
        vm, odd = whole(look(good), process.pid)
        assert vm.name == f"pid:{process.pid}"
        assert "command line is longer" in odd
        assert "command line is longer" in " ".join(run_as(["list"]).stdout.split())
        assert "command line is longer" in " ".join(run_as(["doctor"]).stdout.split())


@pytest.mark.parametrize(
    ("name", "said"), [("n" * 50_000, "its name has 50,000 characters"), ("pid:1", "(pid:1)")]
)
def test_names_that_are_none(good: Guest, tmp_path: Path, name: str, said: str) -> None:
    qemu = python_named(tmp_path, "qemu-system-x86_64")
    with vmm("-name", name, program=qemu) as process:
        vm, odd = whole(look(good), process.pid)
        assert vm.aliases == (f"pid:{process.pid}",)
        assert said in odd


def test_names_with_bytes_that_are_no_text(good: Guest, tmp_path: Path) -> None:
    qemu = python_named(tmp_path, "qemu-system-x86_64")
    with vmm("-name", "a\udcffb\n\x1b[2J", program=qemu) as process:
        vm, _ = whole(look(good), process.pid)
        assert vm.name.startswith("a\ufffdb")
        assert_sound_list(json.loads(run_as(["list", "--json"]).stdout))


def test_another_user_s_vm_of_the_same_name_is_told(good: Guest, tmp_path: Path) -> None:
    qemu = python_named(tmp_path, "qemu-system-x86_64")
    with (
        vmm("-name", "guest1", program=qemu, uid=0) as mine,
        vmm("-name", "guest1", program=qemu) as theirs,
    ):
        look(good)
        done = run_as(["watch", "--vm", "guest1", "--duration", "1"])
        assert done.returncode == 2
        assert f"pid:{mine.pid} (user 0)" in done.stderr
        assert f"pid:{theirs.pid} (user {NOBODY})" in done.stderr
        assert "2 VMs have the name 'guest1'" in run_as(["list"]).stdout


MANY_THREADS = """
threading.stack_size(65536)
stop = threading.Event()
for _ in range(9000):
    threading.Thread(target=stop.wait, daemon=True).start()
"""
MANY_DESCRIPTORS = """
import resource
for fd in range(3, 1 << 30):
    try:
        os.dup(vcpu if fd % 2 else vm)
    except OSError:
        break
"""


def test_thousands_of_threads(good: Guest) -> None:
    with vmm(odd=MANY_THREADS) as process:
        _, odd = whole(look(good), process.pid)
        assert "threads or more" in odd


def test_tens_of_thousands_of_descriptors(good: Guest) -> None:
    former = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = min(MOST_DESCRIPTORS + 5_000, former[1])  # to raise more takes CAP_SYS_RESOURCE
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, former[1]))
    try:
        with vmm(odd=MANY_DESCRIPTORS) as process:
            _, odd = whole(look(good), process.pid)
            assert "descriptors of VMs: only the first" in odd
            assert (most <= MOST_DESCRIPTORS) or "descriptors: only the first" in odd
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, former)


def test_a_name_made_of_parentheses(good: Guest) -> None:
    named = "ctypes.CDLL(None).prctl(15, b') Z 1 1 (x)', 0, 0, 0)"
    with vmm(odd=named) as process:
        vm, _ = whole(look(good), process.pid)
        assert vm.uid == NOBODY


@pytest.mark.live("root", "kvm", "bpf")
def test_watch_says_what_is_odd_and_watches_the_others(good: Guest, tmp_path: Path) -> None:
    qemu = python_named(tmp_path, "qemu-system-x86_64")
    with vmm("-name", "pid:1", "-m", "9" * 5_000, program=qemu) as process:
        done = run_as(["watch", "--duration", "1", "--json"])
        assert done.returncode == 0, done.stderr
        last = json.loads(done.stdout.splitlines()[-1])
        assert {good.pid, process.pid} <= {vm["pid"] for vm in last["vms"]}
        assert any(f"pid {process.pid} " in odd for odd in last["sight"]["odd"])
        assert f"odd: pid {process.pid}" in run_as(["watch", "--duration", "1"]).stdout
