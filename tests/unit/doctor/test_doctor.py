# SPDX-License-Identifier: Apache-2.0
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import pytest

from ipitrace.doctor import Check, Examination
from ipitrace.doctor.kvm import check_kvm
from ipitrace.doctor.load import check_load
from ipitrace.doctor.machine import check_machine
from ipitrace.doctor.tracing import check_access, check_events
from ipitrace.host.files import HostFiles
from ipitrace.host.fingerprint import HostFingerprint, read_fingerprint
from ipitrace.host.kvm_features import KvmFeatures
from ipitrace.render.doctor import render_examination
from ipitrace.vm import Discovery, Vcpu, VirtualMachine

Make = Callable[[Mapping[str, str]], HostFiles]
Captured = Callable[[str], HostFiles]

FEATURES = KvmFeatures(pv_send_ipi=True, tsc_scaling=True)
VM = VirtualMachine(
    pid=700,
    name="web",
    aliases=("web", "pid:700"),
    vmm="QEMU",
    vcpus=(Vcpu(0, 702, (1,), "debugfs", 12), Vcpu(1, 703, (2,), "debugfs", 15)),
    memory_bytes=None,
    started_at_ticks=1,
    apic_mode="x2apic",
    backend="kvm_intel",
    vm_fd=11,
    creator_tid=700,
    unknown={},
)


def by_name(checks: Iterable[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def kvm(
    fingerprint: HostFingerprint, files: HostFiles, vm: VirtualMachine | None = None
) -> dict[str, Check]:
    return by_name(check_kvm(fingerprint, FEATURES, vm, files))


def with_parameters(fingerprint: HostFingerprint, **values: str) -> HostFingerprint:
    named = {f"{fingerprint.kvm_backend}.{name}": value for name, value in values.items()}
    return replace(fingerprint, kvm_parameters={**(fingerprint.kvm_parameters or {}), **named})


def test_a_laptop_with_apicv_off(captured: Captured) -> None:
    files = captured("intel-laptop")
    fingerprint = read_fingerprint(files)
    checks = kvm(fingerprint, files)
    assert checks["KVM"] == Check("KVM", "ok", "kvm_intel, a loaded module")
    assert checks["APICv/AVIC"].status == "warn"
    assert "modprobe kvm_intel enable_apicv=1" in checks["APICv/AVIC"].todo
    assert checks["inhibits"].status == "ok"
    assert checks["halt poll"].says.startswith("for 200 us")
    machine = by_name(check_machine(fingerprint, FEATURES, None, files))
    assert machine["TSC"].status == "ok"
    assert machine["SMT"].status == "warn"
    assert machine["frequency"].status == "warn"
    assert "cpupower" in machine["frequency"].todo
    assert "l1tf" in machine["mitigations"].says
    assert "meltdown" not in machine["mitigations"].says
    assert machine["isolation"].status == "warn"


@pytest.mark.parametrize(
    ("host", "parameters", "status", "says"),
    [
        ("intel-laptop", {"enable_apicv": "Y"}, "ok", "senders exit"),
        ("intel-laptop", {"enable_apicv": "Y", "enable_ipiv": "N"}, "ok", "senders exit"),
        ("intel-laptop", {"enable_apicv": "Y", "enable_ipiv": "Y"}, "ok", "senders need not exit"),
        ("amd-server", {"avic": "1"}, "ok", "senders need not exit"),
        ("amd-server", {"avic": "Y", "enable_ipiv": "N"}, "ok", "senders exit"),
        ("amd-server", {"avic": "0"}, "warn", "senders and targets exit"),
    ],
)
def test_what_the_switches_mean(
    captured: Captured, host: str, parameters: dict[str, str], status: str, says: str
) -> None:
    files = captured(host)
    found = kvm(with_parameters(read_fingerprint(files), **parameters), files)
    check = found["APICv/AVIC"]
    assert (check.status, says in check.says) == (status, True)
    assert found["inhibits"].status == ("unknown" if status == "ok" else "ok")


def test_other_backends(captured: Captured) -> None:
    files = captured("intel-laptop")
    fingerprint = read_fingerprint(files)
    other = kvm(replace(fingerprint, kvm_backend="kvm_x"), files)
    assert other["KVM"].status == "warn"
    assert other["APICv/AVIC"].status == "unknown"
    assert kvm(replace(fingerprint, kvm_backend=None), files)["KVM"].status == "unknown"
    nested = kvm(replace(fingerprint, virtualised=True), files)
    assert (nested["KVM"].status, "guest itself" in nested["KVM"].says) == ("warn", True)


@pytest.mark.parametrize(
    ("mode", "status"), [("x2apic", "ok"), ("xapic", "warn"), (None, "unknown")]
)
def test_the_guests_apic_mode(captured: Captured, mode: str | None, status: str) -> None:
    files = captured("intel-laptop")
    vm = replace(VM, apic_mode=mode)
    assert kvm(read_fingerprint(files), files, vm)["x2APIC"].status == status


def test_a_server(captured: Captured) -> None:
    files = captured("amd-server")
    machine = by_name(check_machine(read_fingerprint(files), None, None, files))
    assert machine["SMT"] == Check("SMT", "ok", "off")
    assert machine["isolation"] == Check("isolation", "ok", "CPUs 8-15; without tick: none")
    assert machine["frequency"].says.startswith("governor ondemand,performance, turbo off")
    assert machine["frequency"].status == "warn"


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"clocksource": "hpet"}, "warn"),
        ({"clocksource": None}, "unknown"),
        ({"tsc_flags": ("constant_tsc",)}, "warn"),
        ({"emulated": "QEMU TCG"}, "warn"),
        ({"clocksource": "kvm-clock"}, "ok"),
    ],
)
def test_the_tsc(captured: Captured, change: dict[str, object], status: str) -> None:
    files = captured("intel-laptop")
    fingerprint = replace(read_fingerprint(files), **change)  # type: ignore[arg-type]
    assert by_name(check_machine(fingerprint, None, None, files))["TSC"].status == status


@pytest.mark.parametrize(
    ("offsets", "scaled", "status", "says"),
    [
        ((-5, -5), False, "ok", "offset -5 on all vCPUs, at the host rate"),
        ((-5, -5), True, "ok", "offset -5 on all vCPUs, scaled"),
        ((-5, -6), False, "warn", "2 offsets among 2 vCPUs"),
        ((), False, "unknown", "no VM of process 700"),
    ],
)
def test_the_guests_tsc(
    make_files: Make, *, offsets: tuple[int, ...], scaled: bool, status: str, says: str
) -> None:
    tree = {"/sys/kernel/debug/kvm/exits": "0"}
    for index, offset in enumerate(offsets):
        directory = f"/sys/kernel/debug/kvm/700-11/vcpu{index}"
        tree[f"{directory}/tsc-offset"] = f"{offset}\n"
        tree[f"{directory}/tsc-scaling-ratio"] = f"{(1 << 48) * (2 if scaled else 1)}\n"
        tree[f"{directory}/tsc-scaling-ratio-frac-bits"] = "48\n"
    files = make_files(tree)
    check = by_name(check_machine(read_fingerprint(files), None, VM, files))["guest TSC"]
    assert (check.status, says in check.says) == (status, True), check.says


def test_overcommit_and_pinning(make_files: Make) -> None:
    files = make_files({})
    other = replace(VM, pid=800, name="db", aliases=("db", "pid:800"))
    found = Discovery((VM, other), 0, None)
    roomy = by_name(check_load(found, VM, 4, files))
    assert roomy["overcommit"] == Check("overcommit", "ok", "4 vCPUs in 2 VMs on 4 CPUs")
    assert roomy["pinning"].status == "ok"
    assert (roomy["VMs"].status, roomy["VMs"].says) == ("warn", "others: db")
    assert by_name(check_load(found, VM, 3, files))["overcommit"].status == "warn"
    together = replace(VM, vcpus=(VM.vcpus[0], replace(VM.vcpus[1], cpus=(1,))))
    assert by_name(check_load(found, together, 4, files))["pinning"].status == "warn"
    lost = replace(VM, vcpus=(VM.vcpus[0], Vcpu(1, None, ())), unknown={"tid": "hidden"})
    assert by_name(check_load(found, lost, 4, files))["pinning"] == Check(
        "pinning", "unknown", "hidden"
    )


def test_two_vcpus_on_one_core(make_files: Make) -> None:
    siblings = "topology/thread_siblings_list"
    cpus = "/sys/devices/system/cpu"
    found = Discovery((VM,), 0, None)
    together = make_files({f"{cpus}/cpu{i}/{siblings}": "1-2" for i in (1, 2)})
    check = by_name(check_load(found, VM, 4, together))["pinning"]
    assert (check.status, check.says) == ("warn", "2 vCPUs share 1 core(s)")
    apart = make_files({f"{cpus}/cpu{i}/{siblings}": f"{i}" for i in (1, 2)})
    assert by_name(check_load(found, VM, 4, apart))["pinning"].status == "ok"


def test_hidden_processes_leave_it_open(make_files: Make) -> None:
    checks = by_name(check_load(Discovery((), 7, None), None, 4, make_files({})))
    assert checks["overcommit"].status == checks["VMs"].status == "unknown"
    alone = by_name(check_load(Discovery((), 0, None), None, 4, make_files({})))
    assert alone["overcommit"].status == alone["VMs"].status == "ok"


def test_statistics_of_bpf_cost(make_files: Make) -> None:
    files = make_files({"/proc/sys/kernel/bpf_stats_enabled": "1"})
    check = by_name(check_load(Discovery((), 0, None), None, 4, files))["tracers"]
    assert check.status == "warn"
    assert "sysctl -w kernel.bpf_stats_enabled=0" in check.todo


ROOT = {
    "/proc/self/status": "CapEff:\t000001ffffffffff\n",
    "/proc/self/ns/user": "-> user:[4026531837]",
    "/proc/self/ns/pid": "-> pid:[4026531836]",
}


@pytest.mark.parametrize(
    ("change", "name", "status"),
    [
        ({}, "rights", "ok"),
        ({"/proc/self/status": "CapEff:\t0000000000000000\n"}, "rights", "missing"),
        ({"/proc/self/ns/pid": "-> pid:[4026532201]"}, "rights", "missing"),
        (
            {"/sys/kernel/security/lockdown": "none integrity [confidentiality]"},
            "rights",
            "missing",
        ),
        ({"/sys/kernel/security/lockdown": "none [integrity] confidentiality"}, "lockdown", "ok"),
        ({"/sys/kernel/security/lockdown": "none [integrity] confidentiality"}, "rights", "ok"),
        ({}, "BTF", "warn"),
        ({"/sys/kernel/btf/vmlinux": ""}, "BTF", "ok"),
        ({"/sys/kernel/btf/vmlinux": "", "/sys/module/kvm/refcnt": "1"}, "BTF", "warn"),
    ],
)
def test_access(make_files: Make, change: dict[str, str], name: str, status: str) -> None:
    assert by_name(check_access(make_files(ROOT | change)))[name].status == status


def test_with_something_missing_the_events_are_not_tried() -> None:
    assert check_events([Check("BPF", "missing", "refused")]).status == "unknown"


def test_the_text_fits_80_columns_and_ends_with_the_verdict() -> None:
    checks = (
        Check("rights", "ok", "root"),
        Check("events", "warn", "tracepoints missing: " + "kvm_exit, " * 20, "do this " * 30),
    )
    text = render_examination(Examination(checks, None), width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert text.endswith("'ipitrace run' can work here, with 1 warning.\n")
    assert "> do this" in text
    broken = Examination((*checks, Check("bcc", "missing", "not installed")), None)
    assert not broken.can_run
    assert render_examination(broken).endswith("'ipitrace run' cannot trace here: bcc.\n")


def test_what_may_not_be_mounted_is_not_promised(make_files: Make) -> None:
    def tracefs(capabilities: str) -> Check:
        files = make_files({"/proc/self/status": f"CapEff:\t{capabilities}\n"})
        return next(check for check in check_access(files) if check.name == "tracefs")

    assert tracefs("0000000000200000").status == "ok"
    without = tracefs("000000c000080004")
    assert without.status == "warn"
    assert "CAP_DAC_READ_SEARCH" in without.says


def test_a_name_without_an_end_does_not_widen_the_report() -> None:
    text = render_examination(
        Examination((Check("VMs", "warn", "running: " + "n" * 255),), None), 80
    )
    assert max(map(len, text.splitlines())) <= 80
