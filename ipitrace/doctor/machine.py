# SPDX-License-Identifier: Apache-2.0
"""The machine: its clock, frequency, SMT, mitigations, and isolated CPUs."""

from collections.abc import Iterator, Mapping
from typing import Final

from ipitrace.doctor.model import Check
from ipitrace.host.files import HOST, HostFiles
from ipitrace.host.fingerprint import CPU_DIR
from ipitrace.host.kvm_features import KvmFeatures
from ipitrace.host.vm_tsc import read_vm_tsc
from ipitrace.recording.host import HostFingerprint
from ipitrace.vm import VirtualMachine

# Any other clock source means that the kernel does not trust the TSC, or that the host is a
# guest whose hypervisor offers its own clock.
_TSC_CLOCKS: Final = ("tsc", "tsc-early", "kvm-clock", "hyperv_clocksource_tsc_page")
_STEADY: Final = ("constant_tsc", "nonstop_tsc")
# Vulnerabilities whose mitigation costs time at VM entries, VM exits or thread switches.
_AT_EXITS: Final = (
    *("l1tf", "mds", "tsx_async_abort", "mmio_stale_data", "reg_file_data_sampling"),
    *("retbleed", "spec_rstack_overflow", "spectre_v2", "vmscape", "tsa"),
)


def check_machine(
    fingerprint: HostFingerprint,
    features: KvmFeatures | None,
    vm: VirtualMachine | None,
    files: HostFiles = HOST,
) -> Iterator[Check]:
    """TSC, the guest's TSC, frequency, SMT, mitigations, isolated CPUs."""
    yield _tsc(fingerprint, features)
    if vm is not None:
        yield _guest_tsc(vm, files)
    yield _frequency(fingerprint)
    yield _smt(fingerprint)
    yield _mitigations(fingerprint.mitigations)
    yield _isolation(fingerprint, files)


def _tsc(fingerprint: HostFingerprint, features: KvmFeatures | None) -> Check:
    if fingerprint.emulated:
        return Check(
            "TSC",
            "warn",
            f"{fingerprint.emulated} interprets this host: cycles are not real time",
            "measure on a real host; exits and paths are valid here",
        )
    flags, clock = fingerprint.tsc_flags, fingerprint.clocksource
    if flags is None or clock is None:
        return Check("TSC", "unknown", "/proc/cpuinfo or the clocksource cannot be read")
    lacking = [flag for flag in _STEADY if flag not in flags]
    if lacking:
        return Check(
            "TSC", "warn", f"not constant: {', '.join(lacking)} missing", "measure on another host"
        )
    if clock not in _TSC_CLOCKS:
        return Check(
            "TSC",
            "warn",
            f"clocksource {clock}: the kernel may have marked the TSC unstable",
            "dmesg | grep -i -e tsc -e clocksource",
        )
    can = {None: "", True: "; guest TSCs can be scaled", False: "; guest TSCs cannot be scaled"}
    scaling = can[None if features is None else features.tsc_scaling]
    return Check("TSC", "ok", f"constant, nonstop, clocksource {clock}{scaling}")


def _guest_tsc(vm: VirtualMachine, files: HostFiles) -> Check:
    tsc = read_vm_tsc(vm.creator_tid or vm.pid, vm.vm_fd, files)
    if not tsc.vcpus:
        return Check("guest TSC", "unknown", tsc.absent or "not available")
    offsets = {known.offset for known in tsc.vcpus.values()}
    if len(offsets) > 1:
        return Check(
            "guest TSC",
            "warn",
            f"{len(offsets)} offsets among {len(tsc.vcpus)} vCPUs",
            "the guest or its VMM changed them: restart the guest",
        )
    if tsc.absent is not None:
        return Check("guest TSC", "unknown", f"not known for all vCPUs: {tsc.absent}")
    known = next(iter(tsc.vcpus.values()))
    if len({(one.ratio, one.frac_bits) for one in tsc.vcpus.values()}) > 1:
        return Check(
            "guest TSC",
            "warn",
            "the vCPUs' TSCs run at different rates",
            "the VMM changed them: restart the guest",
        )
    scaled = known.ratio != 1 << known.frac_bits
    return Check(
        "guest TSC",
        "ok",
        f"offset {known.offset} on all vCPUs, {'scaled' if scaled else 'at the host rate'}",
    )


def _frequency(fingerprint: HostFingerprint) -> Check:
    idle = f"; idle: {fingerprint.cpuidle}" if fingerprint.cpuidle else ""
    turbo = {None: "", True: ", turbo on", False: ", turbo off"}[fingerprint.turbo]
    if fingerprint.governor is None:
        return Check("frequency", "unknown", f"this host has no cpufreq{turbo}{idle}")
    says = f"governor {fingerprint.governor}{turbo}{idle}"
    todo = []
    if fingerprint.governor != "performance":
        todo.append("cpupower frequency-set -g performance")
    if fingerprint.turbo:
        todo.append(
            f"echo 1 > {CPU_DIR}/intel_pstate/no_turbo (or: echo 0 > {CPU_DIR}/cpufreq/boost)"
        )
    if fingerprint.turbo is None and not todo:
        return Check("frequency", "unknown", f"{says}; {CPU_DIR} does not show whether turbo is on")
    return Check("frequency", "warn" if todo else "ok", says, "; ".join(todo))


def _smt(fingerprint: HostFingerprint) -> Check:
    match fingerprint.smt:
        case "on":
            return Check(
                "SMT",
                "warn",
                "on: a task on a vCPU's sibling thread slows the vCPU",
                f"echo off > {CPU_DIR}/smt/control, or keep the siblings idle",
            )
        case "off" | "notsupported":
            return Check("SMT", "ok", "off" if fingerprint.smt == "off" else "none")
    return Check("SMT", "unknown", f"{CPU_DIR}/smt cannot be read")


def _mitigations(states: Mapping[str, str] | None) -> Check:
    if states is None:
        return Check("mitigations", "unknown", f"{CPU_DIR}/vulnerabilities cannot be read")
    active = [name for name in _AT_EXITS if states.get(name, "").startswith("Mitigation")]
    known = {name for name, state in states.items() if not state.startswith("Unknown")}
    unstated = [name for name in _AT_EXITS if name in states and name not in known]
    says = f"part of every exit's cost: {', '.join(active)}" if active else "none affects exits"
    if unstated or not known:
        which = ", ".join(unstated) or "any"
        return Check("mitigations", "unknown", f"{says}, but the kernel does not report {which}")
    return Check("mitigations", "ok", says)


def _isolation(fingerprint: HostFingerprint, files: HostFiles) -> Check:
    isolated, tickless = fingerprint.isolated_cpus, fingerprint.nohz_full_cpus
    if isolated is None:
        return Check("isolation", "unknown", f"{CPU_DIR}/isolated cannot be read")
    if not isolated:
        return Check(
            "isolation",
            "warn",
            "no CPU is isolated: other tasks may run on the vCPUs' CPUs",
            "boot with isolcpus=LIST nohz_full=LIST, pin vCPUs to LIST",
        )
    if tickless is None and files.exists(f"{CPU_DIR}/nohz_full"):
        says = f"CPUs {isolated}; {CPU_DIR}/nohz_full cannot be read"
        return Check("isolation", "unknown", says)
    # Kernels without CONFIG_NO_HZ_FULL have no such file.
    return Check("isolation", "ok", f"CPUs {isolated}; without tick: {tickless or 'none'}")
