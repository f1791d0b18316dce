# SPDX-License-Identifier: Apache-2.0
"""ipitrace.host on the machine the tests run on."""

import ctypes
import fcntl
import os
import platform
import re
import stat
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from host_state import open_descriptors
from other_user import as_user

import ipitrace
from ipitrace.base.errors import HostError
from ipitrace.host.access import require_initial_pid_namespace, require_kvm, require_trace_privilege
from ipitrace.host.bpf_btf import open_kernel_btf
from ipitrace.host.bpf_programs import TRACING_TYPES, loaded_program_types
from ipitrace.host.cpus import allowed_cpus, choose_cpus, read_topology
from ipitrace.host.fingerprint import one_line, read_fingerprint
from ipitrace.host.neighbours import KvmProcess, read_neighbours
from ipitrace.words.exit_reasons import reason_name

PACKAGE_ROOT = Path(ipitrace.__file__).parents[1]

# include/uapi/linux/bpf.h, arch/x86/entry/syscalls/syscall_64.tbl
SYS_BPF = 321
BPF_PROG_LOAD = 5
BPF_PROG_TYPE_RAW_TRACEPOINT = 17

# A process with one VM of two vCPUs; it says so and waits until its standard input closes.
VM_OWNER = """
import fcntl, sys
KVM_CREATE_VM, KVM_CREATE_VCPU = 0xAE01, 0xAE41
vm = fcntl.ioctl(open("/dev/kvm", "r+b", buffering=0), KVM_CREATE_VM, 0)
for vcpu in range(2):
    fcntl.ioctl(vm, KVM_CREATE_VCPU, vcpu)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def vm_owner() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", VM_OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.communicate()


@pytest.fixture
def raw_tracepoint_program() -> Iterator[int]:
    """A loaded (not attached) BPF program "return 0"; its id."""
    mov_r0_0, exit_ = struct.pack("<BBhi", 0xB7, 0, 0, 0), struct.pack("<BBhi", 0x95, 0, 0, 0)
    code = ctypes.create_string_buffer(mov_r0_0 + exit_, 16)
    license_ = ctypes.create_string_buffer(b"GPL")
    attr = struct.pack(
        "=IIQQ",
        BPF_PROG_TYPE_RAW_TRACEPOINT,
        2,
        ctypes.addressof(code),
        ctypes.addressof(license_),
    ).ljust(48, b"\0")
    buffer = ctypes.create_string_buffer(attr, len(attr))
    fd = ctypes.CDLL(None, use_errno=True).syscall(SYS_BPF, BPF_PROG_LOAD, buffer, len(attr))
    assert fd >= 0, os.strerror(ctypes.get_errno())
    info = Path(f"/proc/self/fdinfo/{fd}").read_text()
    match = re.search(r"^prog_id:\s+(\d+)$", info, re.MULTILINE)
    assert match
    yield int(match[1])
    os.close(fd)


@pytest.fixture
def device_directory() -> Iterator[Path]:
    """A directory everyone may enter, below /dev because /tmp is often mounted nodev."""
    with tempfile.TemporaryDirectory(dir="/dev") as name:
        directory = Path(name)
        directory.chmod(0o755)
        yield directory


@pytest.fixture(scope="module")
def kvm_exit_format() -> str:
    """The running kernel's own kvm_exit format, through a tracefs of a mount namespace's own."""
    tracing = "/sys/kernel/tracing"
    script = f"mount -t tracefs none {tracing} && cat {tracing}/events/kvm/kvm_exit/format"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no kvm_exit format to read: {done.stderr.strip()}")
    return done.stdout


def run_check(check: str, *wrapper: str) -> str:
    """Run one access check in another process; what it complains about, "" if nothing."""
    code = (
        "from ipitrace.base.errors import HostError\n"
        "from ipitrace.host import access\n"
        "try:\n"
        f"    access.{check}()\n"
        "except HostError as error:\n"
        "    print(error.message, error.hint)\n"
    )
    done = subprocess.run(
        [*wrapper, sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=PACKAGE_ROOT,
    )
    return done.stdout


@pytest.mark.live("root")
@pytest.mark.parametrize("isa", [1, 2])
def test_exit_reasons_match_the_running_kernel(kvm_exit_format: str, isa: int) -> None:
    table = kvm_exit_format.split("__print_symbolic(")[isa]
    table, _, _ = table.partition("__print_flags")
    printed = re.findall(r'\{ ([^,]+), "([^"]+)" \}', table)
    assert len(printed) > 60
    for number, name in printed:
        assert reason_name(isa, sum(int(term, 0) for term in number.split(" + "))) == name


def test_fingerprint_of_this_host() -> None:
    fp = read_fingerprint()
    assert fp.kernel_release == platform.release()
    assert fp.kernel_version == platform.version()
    assert fp.cpus_online == os.sysconf("SC_NPROCESSORS_ONLN")
    assert fp.cpu_vendor
    assert fp.memory_bytes == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert fp.tsc_flags is not None
    line = one_line(fp)
    assert platform.release() in line
    assert len(line) <= 140


@pytest.mark.live("kvm")
def test_kvm_of_this_host() -> None:
    require_kvm()
    fp = read_fingerprint()
    assert fp.kvm_backend is not None
    assert fp.kvm_parameters
    assert "no KVM" not in one_line(fp)


def test_pinning_on_this_host() -> None:
    topology, allowed = read_topology(), allowed_cpus()
    assert allowed <= {place.cpu for place in topology}
    for place in topology:
        assert place.cpu in place.core <= place.llc
    for n_vcpus in range(1, len(allowed) + 1):
        pinning = choose_cpus(n_vcpus, allowed, topology)
        assert pinning.cpus is not None
        before = os.sched_getaffinity(0)
        try:
            for cpu in pinning.cpus:
                os.sched_setaffinity(0, {cpu})
        finally:
            os.sched_setaffinity(0, before)
    assert choose_cpus(len(allowed) + 1, allowed, topology).overcommitted


@pytest.mark.live("kvm")
def test_another_vm_is_seen(vm_owner: subprocess.Popen[str]) -> None:
    name = Path(f"/proc/{vm_owner.pid}/comm").read_text().strip()
    found = KvmProcess(vm_owner.pid, name, n_vms=1, n_vcpus=2)
    assert found in read_neighbours().kvm_processes
    assert found not in read_neighbours(own_pids={vm_owner.pid}).kvm_processes


@pytest.mark.live("kvm")
def test_our_own_vm_is_not_a_neighbour() -> None:
    with Path("/dev/kvm").open("r+b", buffering=0) as kvm:
        vm = fcntl.ioctl(kvm, 0xAE01, 0)  # KVM_CREATE_VM
    try:
        assert os.getpid() not in {p.pid for p in read_neighbours().kvm_processes}
        assert os.getpid() in {p.pid for p in read_neighbours(own_pids=()).kvm_processes}
    finally:
        os.close(vm)


@pytest.mark.live("root", "bpf")
def test_the_kernels_own_btf_is_found_and_no_other() -> None:
    release = tuple(int(part) for part in os.uname().release.split(".")[:2])
    if release < (5, 11) or not Path("/sys/kernel/btf/vmlinux").exists():
        pytest.skip("this kernel does not list its BTF")
    os.close(open_kernel_btf("vmlinux"))
    before = open_descriptors()
    with pytest.raises(FileNotFoundError):
        open_kernel_btf("no_such_module")
    assert open_descriptors() == before


@pytest.mark.live("root", "bpf")
def test_a_loaded_bpf_program_is_seen(raw_tracepoint_program: int) -> None:
    types = loaded_program_types()
    assert types[raw_tracepoint_program] == BPF_PROG_TYPE_RAW_TRACEPOINT
    assert BPF_PROG_TYPE_RAW_TRACEPOINT in TRACING_TYPES
    found = read_neighbours()
    assert found.bpf_programs
    assert found.bpf_tracing_programs


@pytest.mark.live("root")
def test_an_ordinary_user_learns_what_it_may_not_see() -> None:
    code = (
        "from ipitrace.host.neighbours import read_neighbours\n"
        "found = read_neighbours()\n"
        "print(found.bpf_programs, found.unreadable_processes > 0, found.unknown['bpf_programs'])\n"
    )
    done = subprocess.run(
        [*as_user(), sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=PACKAGE_ROOT,
    )
    assert done.stdout == "None True bpf(2): Operation not permitted\n"


@pytest.mark.live("root")
def test_root_may_trace_and_an_ordinary_user_may_not() -> None:
    require_trace_privilege()
    require_initial_pid_namespace()
    assert "CAP_BPF and CAP_PERFMON" in run_check("require_trace_privilege", *as_user())
    assert run_check("require_initial_pid_namespace", *as_user()) == ""


@pytest.mark.live("root")
def test_namespaces_are_recognised() -> None:
    in_user_namespace = ("unshare", "--user", "--map-root-user")
    refused = subprocess.run(
        [*in_user_namespace, "true"], capture_output=True, text=True, check=False
    )
    if refused.returncode:  # in a chroot, or where user namespaces are turned off
        pytest.skip(f"no user namespace can be made: {refused.stderr.strip()}")
    assert "user namespace" in run_check("require_trace_privilege", *in_user_namespace)
    in_pid_namespace = ("unshare", "--pid", "--fork", "--mount-proc")
    assert "--pid=host" in run_check("require_initial_pid_namespace", *in_pid_namespace)
    assert run_check("require_trace_privilege", *in_pid_namespace) == ""


@pytest.mark.live("root", "kvm")
def test_kvm_without_permission(device_directory: Path) -> None:
    # A node of its own, as the host's /dev/kvm may be open to everyone.
    device = device_directory / "kvm"
    os.mknod(device, stat.S_IFCHR | 0o600, Path("/dev/kvm").stat().st_rdev)
    require_kvm(str(device))
    code = f"from ipitrace.host.access import require_kvm; require_kvm({str(device)!r})"
    done = subprocess.run(
        [*as_user(), sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=PACKAGE_ROOT,
    )
    assert f"HostError: No permission to open {device}." in done.stderr


@pytest.mark.live("root")
def test_a_device_node_without_a_driver(device_directory: Path) -> None:
    device = device_directory / "kvm"
    os.mknod(device, stat.S_IFCHR | 0o600, os.makedev(10, 254))  # a misc minor nobody registers
    with pytest.raises(HostError, match="KVM is not available"):
        require_kvm(str(device))


def test_looking_around_is_cheap() -> None:
    n_processes = sum(name.isdecimal() for name in os.listdir("/proc"))  # noqa: PTH208
    best_s = min(_seconds_of_a_look() for _ in range(5))
    assert best_s < 0.05 * max(1, n_processes / 300)


def _seconds_of_a_look() -> float:
    start = time.perf_counter()
    read_neighbours()
    return time.perf_counter() - start
