# SPDX-License-Identifier: Apache-2.0
"""KVM: the module, and the effect of its settings on IPIs.

A parameter shows only what KVM may do. Host events prove what KVM did with an IPI: see the
paths that `ipitrace run` prints.
"""

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from ipitrace.base.errors import HostError
from ipitrace.doctor.model import Check, Status
from ipitrace.host.access import require_kvm
from ipitrace.host.files import HOST, HostFiles
from ipitrace.host.fingerprint import UNKNOWN_BACKEND
from ipitrace.host.kvm_features import KvmFeatures
from ipitrace.recording.host import HostFingerprint
from ipitrace.vm import VirtualMachine
from ipitrace.vm.apic import mode_of

_IA32_APIC_BASE: Final = 0x1B  # SDM vol. 4, table 2-2
_MSR: Final = "/dev/cpu/0/msr"
_ON: Final = frozenset({"Y", "1"})
_KNOWN: Final = ("kvm_intel", "kvm_amd")
# Each module's parameters: the first lets a running target receive interrupts without an exit,
# the second lets a sender send without an exit.
_SWITCHES: Final = {
    "kvm_intel": ("enable_apicv", "enable_ipiv"),
    "kvm_amd": ("avic", "enable_ipiv"),
}


def check_kvm(
    fingerprint: HostFingerprint,
    features: KvmFeatures | None,
    vm: VirtualMachine | None,
    files: HostFiles = HOST,
) -> Iterator[Check]:
    """Check the module, its APIC acceleration, x2APIC, IPIs by hypercall, halt polling."""
    yield _backend(fingerprint, files)
    virtual_apic = _virtual_apic(fingerprint)
    yield virtual_apic
    yield _inhibits(virtual_apic)
    yield _x2apic(fingerprint, vm)
    yield _pv_ipi(features)
    yield _halt_polling(fingerprint.kvm_parameters or {})


def check_device() -> Check:
    """Open /dev/kvm."""
    try:
        require_kvm()
    except HostError as error:
        return Check("/dev/kvm", "missing", error.message, error.hint)
    return Check("/dev/kvm", "ok", "can be opened and has KVM API version 12")


def _backend(fingerprint: HostFingerprint, files: HostFiles) -> Check:
    backend = fingerprint.kvm_backend
    if backend is None:
        return Check("KVM", "unknown", "no KVM module is visible in /sys/module")
    if backend == UNKNOWN_BACKEND:
        return Check(
            "KVM", "unknown", "built in, or several modules are loaded: the one in use is not known"
        )
    loaded = files.exists(f"/sys/module/{backend}/refcnt")
    how = "a loaded module" if loaded else "built in"
    if backend in _KNOWN:
        nested = ", on a host that is itself a guest: every exit costs more"
        if fingerprint.virtualised:
            return Check("KVM", "warn", f"{backend}, {how}{nested}", "measure on bare metal")
        if fingerprint.virtualised is None:
            return Check(
                "KVM",
                "unknown",
                f"{backend}, {how}; /proc/cpuinfo does not show if the host is a guest",
            )
        return Check("KVM", "ok", f"{backend}, {how}")
    return Check(
        "KVM",
        "warn",
        f"{backend}, {how}: neither VMX nor SVM, so that kvm_exit may never fire",
    )


def _virtual_apic(fingerprint: HostFingerprint) -> Check:
    name = "APICv/AVIC"
    backend, parameters = fingerprint.kvm_backend, fingerprint.kvm_parameters or {}
    if backend not in _SWITCHES:
        return Check(name, "unknown", f"no parameter of {backend or 'KVM'} for it is known")
    target, sender = (
        (switch, parameters.get(f"{backend}.{switch}")) for switch in _SWITCHES[backend]
    )
    if target[1] is None:
        return Check(name, "unknown", f"{backend} has no readable parameter {target[0]}")
    if target[1] not in _ON:
        return Check(
            name,
            "warn",
            f"{target[0]}={target[1]}: senders and targets exit for every IPI",
            f"while no VM runs: modprobe -r {backend}; modprobe {backend} {target[0]}=1",
        )
    senders = sender[1] in _ON or (sender[1] is None and backend == "kvm_amd")
    parts = [f"{target[0]}={target[1]}: running targets do not exit"]
    if sender[1] is not None:
        parts.append(f"{sender[0]}={sender[1]}")
    parts.append("senders need not exit" if senders else "senders exit")
    return Check(name, "ok", ", ".join(parts))


def _inhibits(virtual_apic: Check) -> Check:
    if virtual_apic.status == "warn":
        return Check("inhibits", "ok", "nothing to inhibit")
    return Check(
        "inhibits",
        "unknown",
        "KVM reports only changes (kvm_apicv_inhibit_changed)",
    )


def _x2apic(fingerprint: HostFingerprint, vm: VirtualMachine | None) -> Check:
    name = "x2APIC"
    status, host, todo = _host_x2apic(fingerprint)
    if vm is None:
        return Check(name, status, host, todo)
    if vm.apic_mode is None:
        why = vm.unknown.get("apic_mode", "")
        return Check(name, "unknown", f"{host}; guest: not known, {why}", todo)
    if vm.apic_mode == "x2apic":
        return Check(name, status, f"{host}; guest: x2apic", todo)
    return Check(
        name,
        "warn",
        f"{host}; guest: {vm.apic_mode}",
        "if the guest lacks the CPU flag x2apic, add it",
    )


def _host_x2apic(fingerprint: HostFingerprint) -> tuple[Status, str, str]:
    """Whether the host's first CPU uses x2APIC: status, finding, and what to do."""
    if fingerprint.x2apic is None:
        return "unknown", "/proc/cpuinfo does not show the flags of the host's CPUs", ""
    if not fingerprint.x2apic:
        return "warn", "the host's CPUs do not have it", ""
    try:
        with Path(_MSR).open("rb", buffering=0) as msr:
            msr.seek(_IA32_APIC_BASE)
            mode = mode_of(struct.unpack("<Q", msr.read(8)))
    except (OSError, struct.error) as error:
        absent = isinstance(error, FileNotFoundError)
        why = getattr(error, "strerror", None) or "no value"
        says = f"the host has it; {_MSR} cannot be read ({why}): its use is not known"
        return "unknown", says, "modprobe msr" if absent else ""
    if mode == "x2apic":
        return "ok", "the host uses it", ""
    return "warn", f"the host has it and is in {mode} mode", ""


def _pv_ipi(features: KvmFeatures | None) -> Check:
    if features is None:
        return Check("PV IPI", "unknown", "/dev/kvm does not report it")
    if features.pv_send_ipi:
        return Check("PV IPI", "ok", "offered: Linux guests use a hypercall for multicasts")
    return Check("PV IPI", "ok", "not offered: a multicast takes one send per target or cluster")


def _halt_polling(parameters: Mapping[str, str]) -> Check:
    poll_ns = parameters.get("kvm.halt_poll_ns", "")
    # Y or N; on older kernels the time in ns, or -1 for automatic.
    advance = [v for n, v in parameters.items() if n.startswith("kvm.lapic_timer_advance")]
    timer = "".join(f"; timer advance {value}" for value in advance)
    if not poll_ns.isdecimal():
        return Check("halt poll", "unknown", f"no readable kvm.halt_poll_ns{timer}")
    if poll_ns == "0":
        return Check("halt poll", "ok", f"off: every halted target needs a wake-up{timer}")
    return Check(
        "halt poll",
        "ok",
        f"for up to {int(poll_ns) / 1000:g} us a halted target needs no wake-up{timer}",
    )
