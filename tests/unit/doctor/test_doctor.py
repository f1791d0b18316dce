# SPDX-License-Identifier: Apache-2.0
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from ipitrace.doctor import Check, Examination
from ipitrace.doctor.kvm import check_kvm
from ipitrace.doctor.load import check_load
from ipitrace.doctor.machine import check_machine
from ipitrace.doctor.tracing import check_access, check_events
from ipitrace.host.files import HostFiles
from ipitrace.host.fingerprint import read_fingerprint
from ipitrace.host.kvm_features import KvmFeatures
from ipitrace.recording.host import HostFingerprint
from ipitrace.render.doctor import render_examination
from ipitrace.vm import Discovery, Vcpu, VirtualMachine
from ipitrace.vm.model import OddProcess

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
    assert checks["halt poll"].says.startswith("for up to 200 us")
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
    assert (nested["KVM"].status, "itself a guest" in nested["KVM"].says) == ("warn", True)


@pytest.mark.parametrize(
    ("mode", "host", "status"),
    [
        ("x2apic", "x2apic", "ok"),
        ("x2apic", "xapic", "warn"),
        ("x2apic", None, "unknown"),
        ("xapic", "x2apic", "warn"),
        (None, "x2apic", "unknown"),
    ],
)
def test_the_guests_apic_mode(
    captured: Captured,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    *,
    mode: str | None,
    host: str | None,
    status: str,
) -> None:
    """A host whose own mode is not known is not called ok, whatever the guest's is."""
    files = captured("intel-laptop")
    msr = tmp_path / "msr"
    if host is not None:
        msr.write_bytes(bytes(0x1B) + (0xC00 if host == "x2apic" else 0x800).to_bytes(8, "little"))
    monkeypatch.setattr("ipitrace.doctor.kvm._MSR", str(msr))
    check = kvm(read_fingerprint(files), files, replace(VM, apic_mode=mode))["x2APIC"]
    assert check.status == status, check
    alone = kvm(read_fingerprint(files), files)["x2APIC"]
    assert alone.status == {"x2apic": "ok", "xapic": "warn", None: "unknown"}[host]
    assert (alone.todo == "modprobe msr") == (host is None)


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


SIBLINGS = "topology/thread_siblings_list"
CPUS = "/sys/devices/system/cpu"
OWN_CORES = {f"{CPUS}/cpu{i}/{SIBLINGS}": f"{i}" for i in (1, 2)}


def test_overcommit_and_pinning(make_files: Make) -> None:
    files = make_files(OWN_CORES)
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


LOCKDOWN = "/sys/kernel/security/lockdown"
STATISTICS = {"/sys/kernel/debug/kvm/exits": "7"}
TRACEFS = "/sys/kernel/tracing"
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
        ({LOCKDOWN: "none integrity [confidentiality]"}, "rights", "missing"),
        ({}, "lockdown", "unknown"),
        (STATISTICS, "lockdown", "ok"),
        ({LOCKDOWN: "[none] integrity confidentiality"}, "lockdown", "ok"),
        ({LOCKDOWN: "none [integrity] confidentiality"}, "lockdown", "unknown"),
        ({LOCKDOWN: "none [integrity] confidentiality", **STATISTICS}, "lockdown", "ok"),
        ({LOCKDOWN: "none integrity [confidentiality]"}, "lockdown", "missing"),
        ({"/proc/self/ns/user": "", "/proc/self/ns/pid": ""}, "rights", "unknown"),
        ({}, "tracefs", "warn"),
        (STATISTICS, "tracefs", "warn"),
        ({**STATISTICS, f"{TRACEFS}/events/kvm/enable": "0"}, "tracefs", "ok"),
        ({LOCKDOWN: "none [integrity] confidentiality"}, "rights", "ok"),
        ({}, "BTF", "warn"),
        ({"/sys/kernel/btf/vmlinux": ""}, "BTF", "unknown"),
        ({"/sys/kernel/btf/vmlinux": "", "/sys/module/kvm/uevent": ""}, "BTF", "ok"),
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


def test_what_is_not_known_is_not_ok(captured: Captured, make_files: Make) -> None:
    files = captured("amd-server")
    fingerprint = read_fingerprint(files)

    def machine(**changes: object) -> dict[str, Check]:
        changed = replace(fingerprint, **changes)  # type: ignore[arg-type]
        return by_name(check_machine(changed, None, None, files))

    assert machine(governor="performance", turbo=False)["frequency"].status == "ok"
    assert machine(governor="performance", turbo=None)["frequency"].status == "unknown"
    assert machine(mitigations={"mds": "Not affected"})["mitigations"].status == "ok"
    assert machine(mitigations={"mds": "Unknown: x"})["mitigations"].status == "unknown"
    assert machine(mitigations={})["mitigations"].status == "unknown"
    tickless = replace(fingerprint, nohz_full_cpus=None)
    hidden = make_files({f"{CPUS}/nohz_full": "x"})
    found = by_name(check_machine(tickless, None, None, hidden))["isolation"]
    assert found.status == "unknown"
    assert kvm(replace(fingerprint, virtualised=None), files)["KVM"].status == "unknown"
    assert kvm(replace(fingerprint, x2apic=None), files)["x2APIC"].status == "unknown"
    odd = Discovery((VM,), 0, None, odd=(OddProcess(7, "x", 9, ("it holds too much",)),))
    load = by_name(check_load(odd, VM, 4, make_files({})))
    assert load["VMs"].status == load["overcommit"].status == load["pinning"].status == "unknown"
    assert "1 process may have more VMs" in load["VMs"].says
    # Neither tracefs nor processes can be looked into.
    assert load["tracers"].status != "ok"  # others' BPF programs are a warning


def test_sudo_is_advised_only_where_a_right_is_missing(make_files: Make) -> None:
    def todo(missing: tuple[str, ...], vm: VirtualMachine | None = None) -> str:
        found = Discovery(() if vm is None else (vm,), 7, None, missing=missing)
        return by_name(check_load(found, vm, 4, make_files({})))["overcommit"].todo

    assert todo(()) == ""
    assert todo(("CAP_SYS_PTRACE",)) == "sudo ipitrace doctor"
    odd = replace(VM, name="my vm")
    assert todo(("CAP_SYS_PTRACE",), odd) == "sudo ipitrace doctor --vm 'my vm'"


def test_a_name_without_an_end_does_not_widen_the_report() -> None:
    text = render_examination(
        Examination((Check("VMs", "warn", "running: " + "n" * 255),), None), 80
    )
    assert max(map(len, text.splitlines())) <= 80
