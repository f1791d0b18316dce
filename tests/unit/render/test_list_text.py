# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

from ipitrace.base.units import MIB
from ipitrace.render.list import render_list
from ipitrace.vm import Discovery, Vcpu, VirtualMachine

WEB = VirtualMachine(
    pid=700,
    name="web-frontend",
    aliases=("web-frontend", "pid:700"),
    vmm="QEMU",
    vcpus=tuple(Vcpu(i, 70000 + i, (i,), "debugfs", i) for i in range(64)),
    memory_bytes=2048 * MIB,
    started_at_ticks=1,
    apic_mode="x2apic",
    backend="kvm_amd",
    vm_fd=11,
    creator_tid=700,
    unknown={},
)
OTHER = replace(
    WEB,
    pid=4194303,
    name="pid:4194303",
    aliases=("pid:4194303",),
    vmm="unknown VMM (python3.11)",
    vcpus=(Vcpu(0, 801, (0, 1, 2), "kvm_entry", 5), Vcpu(1, None, (), None, 6)),
    memory_bytes=None,
    apic_mode=None,
    unknown={"memory_bytes": "its command line does not say", "tid": "it has not run yet"},
)


def test_large_and_strange_vms_fit_80_columns() -> None:
    text = render_list(Discovery((WEB, OTHER), 3, None), width=80)
    assert max(map(len, text.splitlines())) <= 80
    for i in range(64):
        assert f"{i}: {70000 + i} on {i}" in text
    assert "KVM backend: kvm_amd" in text
    assert "pid:4194303: memory not known, its command line does not say" in text
    assert "pid:4194303: some threads not known, it has not run yet" in text
    assert "3 processes cannot be inspected" in text


def test_a_row_says_what_is_known() -> None:
    web, other = render_list(Discovery((WEB, OTHER), 0, None)).splitlines()[2:4]
    assert web.split() == ["web-frontend", "QEMU", "700", "64", "2048", "MiB", "x2apic", "pinned"]
    assert other.split() == [
        *("pid:4194303", "?", "(python3.11)", "4194303", "2", "-", "-", "several"),
    ]


def test_threads_told_by_less_than_kvms_word_say_so() -> None:
    text = render_list(Discovery((OTHER,), 0, None))
    assert "0: 801 on 0-2, 1: - (seen at kvm_entry)" in text


def test_none() -> None:
    assert render_list(Discovery((), 0, None)) == "No KVM VM was found.\n"
