# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import given
from hypothesis import strategies as st
from vm_trees import IN_KVM_RUN, POLLING, RUNNING, WORKER

from ipitrace.base.units import KIB, MIB
from ipitrace.host.files import parse_cpu_list
from ipitrace.render.list import cpu_list
from ipitrace.vm.agent import AgentChannel, agent_channel
from ipitrace.vm.apic import mode_of
from ipitrace.vm.confidential import Confidential
from ipitrace.vm.names import libvirt_names, scope_name
from ipitrace.vm.threads import kvm_run_fd
from ipitrace.vm.vmm import CommandLine, parse_command_line

GIB = KIB**3


@pytest.mark.parametrize(
    ("syscall", "fd"),
    [
        (IN_KVM_RUN, 15),
        (WORKER, None),
        (POLLING, None),
        (RUNNING, None),
        (IN_KVM_RUN.replace("0xae80", "0xae81"), None),
        (IN_KVM_RUN.replace("16 ", "7 ", 1), None),
        ("-1 0x7ffc 0x7fec", None),
        ("", None),
        (None, None),
    ],
)
def test_the_descriptor_a_thread_runs(syscall: str | None, fd: int | None) -> None:
    assert kvm_run_fd(syscall) == fd


@pytest.mark.parametrize(
    ("bases", "mode"),
    [
        ([], None),
        ([0, 0], None),
        ([0xFEE00900], "xapic"),
        ([0xFEE00D00], "x2apic"),
        ([0xFEE00900, 0xFEE00C00], "x2apic"),
        ([0xFEE00100], "off"),
        ([0, 0xFEE00900], "xapic"),
    ],
)
def test_the_apic_mode(bases: list[int], mode: str | None) -> None:
    assert mode_of(bases) == mode


@pytest.mark.parametrize(
    ("program", "arguments", "name", "memory"),
    [
        ("qemu-system-x86_64", "-m 64 -name g1", "g1", 64 * MIB),
        ("qemu-system-x86_64", "-name g1,process=x -m 1.5G", "g1", None),
        ("qemu-kvm", "-name debug-threads=on,guest=g1 -m size=4G,maxmem=8G", "g1", 4 * GIB),
        ("qemu-system-i386", "-name debug-threads=on -m 2g", None, 2 * GIB),
        ("qemu-system-x86_64", "-nodefaults -name", None, None),
        ("qemu-system-x86_64", "-m 64 -m 128", None, 128 * MIB),
        ("cloud-hypervisor", "--memory size=1024M,shared=on", None, 1024 * MIB),
        ("cloud-hypervisor", "--memory=size=1073741824", None, GIB),
        ("firecracker", "--id vm-7 --config-file x.json", "vm-7", None),
        ("crosvm", "run --mem 2048 kernel", None, 2048 * MIB),
        ("crosvm", "run --mem size=512 kernel", None, 512 * MIB),
        ("lkvm", "run --name guest-5 -m 256", "guest-5", 256 * MIB),
    ],
)
def test_command_lines(program: str, arguments: str, name: str | None, memory: int | None) -> None:
    line = parse_command_line(program, [f"/usr/bin/{program}", *arguments.split()])
    assert (line.name, line.memory_bytes) == (name, memory)
    assert not line.vmm.startswith("unknown")


@pytest.mark.parametrize(
    ("arguments", "vmm"),
    [
        ("/x/.venv/bin/python /x/.venv/bin/ipitrace run", "ipitrace"),
        ("python3 -m ipitrace run", "ipitrace"),
        ("python3 -X dev -m ipitrace", "ipitrace"),
        ("python3 -m pytest ipitrace", "unknown VMM (python3.11)"),
        ("python3 /x/own-vmm.py ipitrace", "unknown VMM (python3.11)"),
    ],
)
def test_ipitrace_is_known(arguments: str, vmm: str) -> None:
    assert parse_command_line("python3.11", arguments.split()) == CommandLine(vmm, None, None, None)


@pytest.mark.parametrize(
    ("program", "arguments", "expected"),
    [
        (
            "qemu-kvm",
            "-object tdx-guest,id=tdx0 -machine q35",
            Confidential("TDX", protected_tsc=True),
        ),
        (
            "qemu-kvm",
            '-object {"qom-type":"tdx-guest","id":"t"}',
            Confidential("TDX", protected_tsc=True),
        ),
        (
            "qemu-kvm",
            "-object sev-snp-guest,id=s,cbitpos=51",
            Confidential("SEV-SNP", protected_tsc=False),
        ),
        (
            "qemu-kvm",
            "-object sev-snp-guest,secure-tsc=on,id=s",
            Confidential("SEV-SNP", protected_tsc=True),
        ),
        (
            "qemu-kvm",
            '-object {"qom-type":"sev-snp-guest","id":"s","secure-tsc":true}',
            Confidential("SEV-SNP", protected_tsc=True),
        ),
        (
            "qemu-kvm",
            "-object sev-guest,id=s,policy=0x5",
            Confidential("SEV-ES", protected_tsc=False),
        ),
        ("qemu-kvm", "-object sev-guest,id=s", Confidential("SEV", protected_tsc=False)),
        ("qemu-kvm", "-object sev-guest,id=s,policy=odd", Confidential("SEV", protected_tsc=False)),
        (
            "qemu-kvm",
            "-object rng-random,id=r --object=tdx-guest,id=t",
            Confidential("TDX", protected_tsc=True),
        ),
        ("cloud-hypervisor", "--platform tdx=on", Confidential("TDX", protected_tsc=True)),
        (
            "cloud-hypervisor",
            "--platform sev_snp=on,x=y",
            Confidential("SEV-SNP", protected_tsc=False),
        ),
        ("cloud-hypervisor", "--platform num_pci_segments=2", None),
        ("qemu-kvm", "-object memory-backend-ram,id=tdx-guest", None),
        ("qemu-kvm", '-object {"qom-type":', None),
        ("qemu-kvm", "-object [1]", None),
        ("qemu-kvm", "-object", None),
        ("qemu-kvm", "-object tdx=on", None),
        ("firecracker", "-object tdx-guest", None),
    ],
)
def test_confidential_vms(program: str, arguments: str, expected: Confidential | None) -> None:
    assert parse_command_line(program, [program, *arguments.split()]).confidential == expected


def test_scopes() -> None:
    assert scope_name("0::/machine.slice/machine-qemu\\x2d3\\x2da\\x5fb.scope/x\n") == "qemu-3-a_b"
    assert scope_name("1:cpu:/a\n0::/machine.slice/machine-web.scope\n") == "web"
    assert scope_name("0::/system.slice/ssh.service\n") is None
    assert scope_name(None) is None


@given(st.sets(st.integers(0, 300)))
def test_cpu_lists_read_back(cpus: set[int]) -> None:
    assert parse_cpu_list(cpu_list(sorted(cpus))) == tuple(sorted(cpus))


def test_libvirt_domains_by_uuid() -> None:
    pytest.importorskip("libvirt", reason="libvirt-python is not installed")
    assert libvirt_names("test:///default") == {"6695eb01-f6a4-8304-79aa-97f2502e193f": "test"}
    assert libvirt_names("test:///no/such/file") == {}


PORT = "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"
LIBVIRT_PORT = (
    '{"driver":"virtserialport","bus":"virtio-serial0.0","nr":1,"chardev":"charchannel0",'
    '"id":"channel0","name":"org.qemu.guest_agent.0"}'
)
LIBVIRT_KEY = "secret,id=masterKey0,file=/var/lib/libvirt/qemu/domain-1-web/master-key.aes"


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        (
            ["-chardev", "socket,path=/run/a.sock,server=on,id=agent", "-device", PORT],
            "/run/a.sock",
        ),
        (["-device", PORT, "--chardev", "socket,id=agent,path=/run/a,,b c"], "/run/a,b c"),
        (["-chardev", "socket,id=agent,fd=31", "-device", PORT], None),
        (["-chardev", "socket,path=/run/a.sock,id=other", "-device", PORT], None),
        (["-device", PORT], None),
        (["-chardev", "socket,path=/run/a.sock", "-device", "virtserialport,name=x"], None),
        (["-device", "{", "-chardev"], None),
        ([], None),
    ],
)
def test_the_agent_s_channel_on_qemu_s_command_line(arguments: list[str], path: str | None) -> None:
    found = agent_channel(["/usr/bin/qemu-system-x86_64", *arguments])
    assert found == (None if path is None else AgentChannel(path))


def test_libvirt_s_domains_are_reached_through_it() -> None:
    arguments = ["-object", LIBVIRT_KEY, "-chardev", "socket,id=charchannel0,fd=31,server=on"]
    assert agent_channel([*arguments, "-device", LIBVIRT_PORT]) == AgentChannel()
    assert agent_channel(arguments) is None
