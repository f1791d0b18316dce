# SPDX-License-Identifier: Apache-2.0
"""debugfs trees as KVM makes them, read back."""

from pathlib import Path

from ipitrace.clock import GuestTsc
from ipitrace.host.files import HostFiles
from ipitrace.host.vm_tsc import read_vm_tsc

RATIO_INTEL = 3 << 47  # 1.5 with 48 fraction bits


def make_vcpu(root: Path, vm: str, vcpu: str, **files: str) -> Path:
    directory = root / "sys/kernel/debug/kvm" / vm / vcpu
    directory.mkdir(parents=True)
    for name, text in files.items():
        (directory / name.replace("_", "-")).write_text(text)
    return directory


def make_scaled(root: Path, vm: str, vcpu: str, offset: int) -> Path:
    return make_vcpu(
        root,
        vm,
        vcpu,
        guest_mode="0\n",
        tsc_offset=f"{offset}\n",
        tsc_scaling_ratio=f"{RATIO_INTEL}\n",
        tsc_scaling_ratio_frac_bits="48\n",
    )


def test_a_scaled_vm(tmp_path: Path) -> None:
    for vcpu in range(12):
        make_scaled(tmp_path, "812-13", f"vcpu{vcpu}", -(10**15) - vcpu)
    (tmp_path / "sys/kernel/debug/kvm/812-13/mmu_shadow_zapped").write_text("0\n")
    found = read_vm_tsc(812, files=HostFiles(tmp_path))
    assert found.absent is None
    assert list(found.vcpus) == list(range(12))
    assert found.vcpus[11] == GuestTsc(-(10**15) - 11, RATIO_INTEL, 48)


def test_a_kvm_that_cannot_scale(tmp_path: Path) -> None:
    make_vcpu(tmp_path, "812-13", "vcpu0", tsc_offset="-5\n")
    assert read_vm_tsc(812, files=HostFiles(tmp_path)).vcpus == {0: GuestTsc(-5)}


def test_two_vms_of_one_process(tmp_path: Path) -> None:
    make_vcpu(tmp_path, "812-13", "vcpu0", tsc_offset="1\n")
    make_vcpu(tmp_path, "812-130", "vcpu0", tsc_offset="2\n")
    make_vcpu(tmp_path, "8121-13", "vcpu0", tsc_offset="3\n")
    files = HostFiles(tmp_path)
    assert read_vm_tsc(812, 13, files).vcpus == {0: GuestTsc(1)}
    assert read_vm_tsc(812, 130, files).vcpus == {0: GuestTsc(2)}
    both = read_vm_tsc(812, files=files)
    assert not both.vcpus
    assert "2 VMs (812-13, 812-130)" in (both.absent or "")


def test_nothing_there(tmp_path: Path) -> None:
    assert "mount -t debugfs" in (read_vm_tsc(1, files=HostFiles(tmp_path)).absent or "")
    (tmp_path / "sys/kernel/debug/kvm/9-9").mkdir(parents=True)
    assert "no VM of process 1" in (read_vm_tsc(1, files=HostFiles(tmp_path)).absent or "")
    assert "no vCPUs" in (read_vm_tsc(9, files=HostFiles(tmp_path)).absent or "")


def test_a_file_that_is_there_and_cannot_be_read(tmp_path: Path) -> None:
    for vcpu in ("vcpu0", "vcpu1"):
        make_scaled(tmp_path, "812-13", vcpu, 0)
    ratio = tmp_path / "sys/kernel/debug/kvm/812-13/vcpu1/tsc-scaling-ratio"
    ratio.unlink()
    ratio.mkdir()  # even root cannot read it as a file
    found = read_vm_tsc(812, files=HostFiles(tmp_path))
    assert list(found.vcpus) == [0]
    assert "vcpu1/tsc-scaling-ratio cannot be read" in (found.absent or "")


def test_an_old_kernel_and_an_impossible_ratio(tmp_path: Path) -> None:
    make_vcpu(tmp_path, "1-1", "vcpu0")
    assert "has no tsc-offset" in (read_vm_tsc(1, files=HostFiles(tmp_path)).absent or "")
    make_vcpu(
        tmp_path,
        "2-1",
        "vcpu0",
        tsc_offset="0",
        tsc_scaling_ratio="0",
        tsc_scaling_ratio_frac_bits="48",
    )
    assert "invalid TSC ratio" in (read_vm_tsc(2, files=HostFiles(tmp_path)).absent or "")
