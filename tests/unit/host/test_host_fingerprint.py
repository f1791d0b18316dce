# SPDX-License-Identifier: Apache-2.0
import json
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest

from ipitrace.base.loading import keys_of, load
from ipitrace.host.files import HostFiles
from ipitrace.host.fingerprint import one_line, read_fingerprint
from ipitrace.recording.host import HostFingerprint

Make = Callable[[Mapping[str, str]], HostFiles]
Captured = Callable[[str], HostFiles]
HOSTS = ["intel-laptop", "amd-server", "nested-guest"]


def test_intel_laptop(captured: Captured) -> None:
    assert read_fingerprint(captured("intel-laptop")) == HostFingerprint(
        cpu_model="Intel(R) Core(TM) i7-8650U CPU @ 1.90GHz",
        cpu_vendor="GenuineIntel",
        cpu_signature="6-142-10",
        microcode="0xf0",
        cpus_online=8,
        smt="on",
        kernel_release="5.14.17-301.fc35.x86_64",
        kernel_version="#1 SMP Mon Nov 8 13:57:43 UTC 2021",
        kernel_cmdline="BOOT_IMAGE=(hd0,gpt2)/vmlinuz-5.14.17-301.fc35.x86_64 "
        "root=/dev/mapper/fedora-root ro rhgb quiet nohz_full=2-3",
        kvm_backend="kvm_intel",
        kvm_parameters={
            "kvm.halt_poll_ns": "200000",
            "kvm.lapic_timer_advance_ns": "-1",
            "kvm.vector_hashing": "Y",
            "kvm_intel.enable_apicv": "N",
            "kvm_intel.nested": "Y",
            "kvm_intel.ple_gap": "0",
        },
        mitigations={
            "l1tf": "Mitigation: PTE Inversion; VMX: conditional cache flushes, SMT vulnerable",
            "meltdown": "Mitigation: PTI",
        },
        governor="powersave",
        turbo=True,
        cpuidle="intel_idle/menu",
        clocksource="tsc",
        tsc_flags=("constant_tsc", "nonstop_tsc", "tsc_adjust"),
        x2apic=True,
        virtualised=False,
        emulated=None,
        numa_nodes=1,
        isolated_cpus="",
        nohz_full_cpus="2-3",
        memory_bytes=16202268 * 1024,
    )


def test_amd_server(captured: Captured) -> None:
    fp = read_fingerprint(captured("amd-server"))
    assert fp.kvm_backend == "kvm_amd"
    assert fp.smt == "off"
    assert fp.turbo is False
    assert fp.governor == "ondemand,performance"
    assert fp.cpuidle == "acpi_idle/menu"
    assert fp.tsc_flags == ("constant_tsc", "nonstop_tsc", "tsc_scale")
    assert fp.cpus_online == 64
    assert fp.numa_nodes == 4
    assert fp.isolated_cpus == "8-15"
    assert fp.nohz_full_cpus == ""
    assert fp.mitigations is None


def test_nested_guest(captured: Captured) -> None:
    fp = read_fingerprint(captured("nested-guest"))
    assert fp.kvm_backend == "kvm_pvm"
    assert fp.smt == "notsupported"
    assert fp.virtualised is True
    assert fp.governor is None
    assert fp.turbo is None
    assert fp.nohz_full_cpus is None
    assert fp.kernel_cmdline is None


def test_an_empty_tree_has_nothing_and_invents_nothing(make_files: Make) -> None:
    plain = read_fingerprint(make_files({})).to_dict()
    assert plain.pop("smt") == "unknown"
    assert set(plain.values()) == {None}


def test_damaged_files_are_absent_files(make_files: Make) -> None:
    fp = read_fingerprint(
        make_files(
            {
                "/proc/cpuinfo": "no colon here\nmodel name\t: X\n",
                "/proc/meminfo": "MemTotal: much\n",
                "/sys/devices/system/cpu/online": "all\n",
                "/sys/devices/system/cpu/cpufreq/boost": "maybe\n",
            }
        )
    )
    assert fp.cpu_model == "X"
    assert (fp.memory_bytes, fp.cpus_online, fp.turbo, fp.x2apic) == (None, None, None, None)


@pytest.mark.parametrize(
    ("modules", "flags", "backend"),
    [
        ({}, "vmx", None),
        ({"kvm/parameters/x": "1"}, "vmx", "built-in/unknown"),
        # Built in, and no kvm_amd without svm: the other one must be at work.
        (
            {"kvm_intel/parameters/nested": "Y", "kvm_amd/parameters/nested": "1"},
            "vmx",
            "kvm_intel",
        ),
        ({"kvm_amd/parameters/nested": "1"}, "vmx", "built-in/unknown"),
        (
            {"kvm_intel/parameters/nested": "Y", "kvm_pvm/parameters/force": "N"},
            "vmx",
            "built-in/unknown",
        ),
        ({"kvm_intel/parameters/nested": "Y", "kvm_pvm/refcnt": "0"}, "vmx", "kvm_pvm"),
        ({"kvm_intel/refcnt": "0", "kvm_pvm/refcnt": "0"}, "vmx", "built-in/unknown"),
    ],
)
def test_backend(
    make_files: Make, modules: Mapping[str, str], flags: str, backend: str | None
) -> None:
    contents = {f"/sys/module/{path}": text for path, text in modules.items()}
    files = make_files({"/proc/cpuinfo": f"flags : {flags}\n"} | contents)
    assert read_fingerprint(files).kvm_backend == backend


@pytest.mark.parametrize(
    ("model", "flags", "bios", "emulated"),
    [
        ("QEMU TCG CPU version 2.5+", "svm hypervisor", "SeaBIOS", "QEMU TCG"),
        ("11th Gen Intel(R) Core(TM) i7", "vmx", "Bochs", "Bochs"),
        ("QEMU Virtual CPU version 0.12.1", "hypervisor", "Bochs", None),
        ("Intel(R) Xeon(R) Gold 6230", "vmx hypervisor", "SeaBIOS", None),
        ("Intel(R) Xeon(R) Gold 6230", "vmx", "Dell Inc.", None),
    ],
)
def test_emulated(
    make_files: Make, model: str, flags: str, bios: str, emulated: str | None
) -> None:
    files = make_files(
        {
            "/proc/cpuinfo": f"model name : {model}\nflags : {flags}\n",
            "/sys/class/dmi/id/bios_vendor": bios,
        }
    )
    fp = read_fingerprint(files)
    assert fp.emulated == emulated
    assert ("cycles are not real time" in one_line(fp)) == bool(emulated)


@pytest.mark.parametrize("name", HOSTS)
def test_json_and_back(captured: Captured, name: str) -> None:
    fp = read_fingerprint(captured(name))
    assert load(HostFingerprint, json.loads(json.dumps(fp.to_dict()))) == fp


def test_a_recording_of_another_version_still_reads() -> None:
    fp = load(HostFingerprint, {"cpu_model": "X", "colour": "green"})
    assert fp.cpu_model == "X"
    assert {getattr(fp, key) for key in keys_of(HostFingerprint) if key != "cpu_model"} == {None}
    assert fp.to_dict() == {"cpu_model": "X", "colour": "green"}


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (
            "intel-laptop",
            (
                "Intel Core i7-8650U, 8 CPUs, SMT on · Linux 5.14.17-301.fc35.x86_64 · "
                "kvm_intel apicv=N · halt_poll 200 us · microcode 0xf0"
            ),
        ),
        (
            "amd-server",
            (
                "AMD EPYC 7502P, 64 CPUs, SMT off · Linux 5.15.0-70-generic · "
                "kvm_amd avic=1 · no halt_poll · microcode 0x8301052"
            ),
        ),
        (
            "nested-guest",
            (
                "AMD EPYC, 2 CPUs, no SMT · Linux 6.18.44 · kvm_pvm · halt_poll 200 us · "
                "virtualised host · microcode 0x1000065"
            ),
        ),
    ],
)
def test_one_line(captured: Captured, name: str, line: str) -> None:
    assert one_line(read_fingerprint(captured(name))) == line
    assert len(line) <= 140


def test_one_line_of_little(make_files: Make, captured: Captured) -> None:
    assert one_line(read_fingerprint(make_files({}))) == "no KVM"
    fp = replace(read_fingerprint(captured("nested-guest")), kvm_backend="built-in/unknown")
    assert " · KVM built in · " in one_line(fp)
