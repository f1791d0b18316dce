# SPDX-License-Identifier: Apache-2.0
"""Checks whether the host can be traced, by trying each operation."""

import errno
import os
from collections.abc import Collection, Iterator
from pathlib import Path

from ipitrace.base.errors import HostError
from ipitrace.doctor.model import Check
from ipitrace.host.access import (
    may_mount,
    missing_to_look_into_processes,
    read_lockdown,
    require_initial_pid_namespace,
    require_trace_privilege,
)
from ipitrace.host.bpf_programs import load_trivial_program
from ipitrace.host.files import HOST, HostFiles
from ipitrace.tracer import Tracer
from ipitrace.tracer.bcc_import import import_bcc
from ipitrace.tracer.cache import cache_state
from ipitrace.tracer.events import EVENT_BY_NAME
from ipitrace.tracer.tracefs import MOUNT_POINTS, ensure_debugfs, ensure_securityfs, ensure_tracefs
from ipitrace.vm.debugfs import KVM_DIR

_BTF = "/sys/kernel/btf"
_OTHERWISE = "'ipitrace run --no-trace' measures without tracing the host"
KVM_STATISTICS = f"{KVM_DIR}/exits"


def check_access(files: HostFiles = HOST) -> Iterator[Check]:
    """Check rights, lockdown, file systems, BTF, BPF, bcc.

    Run these checks first: they mount missing file systems for this process alone. Call it in
    the main thread (see tracer.tracefs).
    """
    yield _rights(files)
    file_systems = _file_systems(files)
    yield _lockdown(files)
    yield file_systems
    yield _btf(files)
    yield check_bpf()
    yield check_bcc()


def _rights(files: HostFiles) -> Check:
    try:
        require_trace_privilege(files, otherwise=_OTHERWISE)
        require_initial_pid_namespace(files, otherwise=_OTHERWISE)
    except HostError as error:
        return Check("rights", "missing", error.message, error.hint)
    who = "root" if os.geteuid() == 0 else "CAP_BPF and CAP_PERFMON"
    if files.link("/proc/self/ns/user") is None or files.link("/proc/self/ns/pid") is None:
        return Check("rights", "unknown", f"{who}; /proc/self/ns does not show the namespaces")
    return Check("rights", "ok", f"{who}, in the host's own namespaces")


def _lockdown(files: HostFiles) -> Check:
    """Check the lockdown state, and whether a file that lockdown closes can be read.

    Under lockdown, the kernel opens no writable file of debugfs. KVM's statistics are writable
    (debugfs_locked_down() in fs/debugfs/file.c, kvm_init_debug() in virt/kvm/kvm_main.c).
    """
    state, refusal = _read_lockdown(files), files.refusal(KVM_STATISTICS)
    if state not in (None, "none", "integrity"):
        todo = "boot with lockdown=integrity or none"
        return Check("lockdown", "missing", f"{state}: no tracing", todo)
    known = state or "/sys/kernel/security/lockdown cannot be read"
    if refusal is None:
        return Check("lockdown", "ok", f"{known}; KVM's statistics in debugfs can be read")
    if refusal.errno == errno.EPERM:
        return Check(
            "lockdown",
            "warn",
            f"{known}; KVM's statistics in debugfs cannot be read ({refusal.strerror}): 'ipitrace "
            "watch' shows no exits if kvm_exit does not fire",
        )
    if state == "none":
        return Check("lockdown", "ok", state)
    untried = f"{known}; its effect is not known: {KVM_STATISTICS}: {refusal.strerror}"
    return Check("lockdown", "unknown", untried)


def _read_lockdown(files: HostFiles) -> str | None:
    state = read_lockdown(files)
    if state is None and files == HOST and ensure_securityfs() is None:
        state = read_lockdown(files)
    return state


def _file_systems(files: HostFiles) -> Check:
    """Check whether they can be read; if missing, mount them for this process alone first."""
    refused: dict[str, str] = {}
    if files == HOST:
        mounted = {"tracefs": ensure_tracefs()[1], "debugfs": ensure_debugfs()}
        refused = {kind: why for kind, why in mounted.items() if why is not None}
    if refused:
        return Check("tracefs", "warn", "; ".join(refused.values()), _how_to_read(refused))
    tried = {"tracefs": [f"{path}/events/kvm" for path in MOUNT_POINTS], "debugfs": [KVM_DIR]}
    for kind, paths in tried.items():
        failures = [files.refusal(path) for path in paths]
        if None not in failures:
            why = f"{paths[0]}: {failures[0].strerror}" if failures[0] else ""
            return Check("tracefs", "warn", f"{kind} does not show KVM: {why}", "lsmod | grep kvm")
    return Check("tracefs", "ok", "tracefs and debugfs show KVM")


def _how_to_read(refused: Collection[str]) -> str:
    if missing_to_look_into_processes() or not may_mount():
        return f"use sudo to read {' and '.join(refused)}, or CAP_DAC_READ_SEARCH if mounted"
    return "see dmesg, and check what prevents this process from mounting (a container?)"


def _btf(files: HostFiles) -> Check:
    refusal = files.refusal(f"{_BTF}/vmlinux")
    if refusal is not None and refusal.errno != errno.ENOENT:
        return Check("BTF", "unknown", f"{_BTF}/vmlinux: {refusal.strerror}")
    if refusal is not None:
        return Check(
            "BTF",
            "warn",
            "none: fewer events can be traced",
            "use a kernel with CONFIG_DEBUG_INFO_BTF=y (current distributions set it)",
        )
    shown = [name for name in files.names("/sys/module") if name.startswith("kvm")]
    modules = [n for n in shown if files.exists(f"/sys/module/{n}/refcnt")]
    without = [name for name in modules if files.refusal(f"{_BTF}/{name}") is not None]
    if without:
        return Check(
            "BTF",
            "warn",
            f"for the kernel, not for {', '.join(without)}: their tracepoints cost more",
            "use a kernel with CONFIG_DEBUG_INFO_BTF_MODULES=y",
        )
    if not shown:
        return Check(
            "BTF", "unknown", "for the kernel; /sys/module does not show KVM", "lsmod | grep kvm"
        )
    return Check(
        "BTF", "ok", f"for the kernel and {', '.join(modules) or 'KVM, which is built in'}"
    )


def check_bpf() -> Check:
    """Load a BPF program that does nothing."""
    try:
        load_trivial_program()
    except OSError as error:
        todo = "run ipitrace outside of containers"
        if os.geteuid():
            todo = "run ipitrace with sudo, outside of containers"
        if error.errno == errno.ENOSYS:
            todo = "use a kernel with CONFIG_BPF_SYSCALL=y"
        return Check("BPF", "missing", f"the kernel rejects BPF programs: {error.strerror}", todo)
    return Check("BPF", "ok", "the kernel accepts a BPF program")


def check_bcc() -> Check:
    """Import the distribution's bcc."""
    try:
        bcc = import_bcc()
    except HostError as error:
        return Check("bcc", "missing", error.message, error.hint)
    version = getattr(bcc, "__version__", "of unknown version")
    return Check("bcc", "ok", f"{version} in {Path(bcc.__file__ or '?').parent}")


def check_events(access: Collection[Check]) -> Check:
    """Compile and load every program for one vCPU, without attaching any.

    `access` are the results of check_access(). If one is missing, nothing is tried.
    """
    if any(check.status == "missing" for check in access):
        return Check("events", "unknown", "not tried: an item above is missing")
    try:
        with Tracer.load(pid=os.getpid(), n_vcpus=1) as tracer:
            hooks, left_out = tracer.hooks, tracer.left_out
    except HostError as error:
        return Check("events", "missing", error.message, error.hint)
    tracepoints = [name for name in left_out if not EVENT_BY_NAME[name].symbol]
    functions = [name for name in left_out if EVENT_BY_NAME[name].symbol]
    says = f"{len(hooks)} of {len(EVENT_BY_NAME)} can be loaded"
    says += f"; compiled programs are {cache_state()}"
    if functions:
        says += f"; {len(functions)} are functions that this kernel lacks or hides"
    if not tracepoints:
        return Check("events", "ok", says)
    reasons = dict.fromkeys(left_out[name] for name in tracepoints)
    return Check(
        "events",
        "warn",
        f"{says}; missing tracepoints: {', '.join(tracepoints)}",
        "; ".join(reasons),
    )
