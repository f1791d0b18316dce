# SPDX-License-Identifier: Apache-2.0
"""Can the host be traced? Each thing is tried rather than looked up."""

import os
from collections.abc import Collection, Iterator
from pathlib import Path

from ipitrace.doctor.model import Check
from ipitrace.errors import HostError
from ipitrace.host.access import (
    may_mount,
    read_lockdown,
    require_initial_pid_namespace,
    require_trace_privilege,
)
from ipitrace.host.bpf_programs import load_trivial_program
from ipitrace.host.files import HOST, HostFiles
from ipitrace.tracer import Tracer
from ipitrace.tracer.bcc_import import import_bcc
from ipitrace.tracer.events import EVENT_BY_NAME
from ipitrace.tracer.tracefs import find_tracefs
from ipitrace.vm.debugfs import KVM_DIR

_BTF = "/sys/kernel/btf"


def check_access(files: HostFiles = HOST) -> Iterator[Check]:
    """Rights, lockdown, file systems, BTF, BPF, bcc.

    Ask before anything else: what comes later may mount file systems for this process.
    """
    yield _rights(files)
    yield _lockdown(files)
    yield _file_systems(files)
    yield _btf(files)
    yield check_bpf()
    yield check_bcc()


def _rights(files: HostFiles) -> Check:
    try:
        require_trace_privilege(files)
        require_initial_pid_namespace(files)
    except HostError as error:
        return Check("rights", "missing", error.message, error.hint)
    who = "root" if os.geteuid() == 0 else "CAP_BPF and CAP_PERFMON"
    return Check("rights", "ok", f"{who}, in the host's own namespaces")


def _lockdown(files: HostFiles) -> Check:
    state = read_lockdown(files)
    if state is None:
        return Check("lockdown", "ok", "none, or none is shown")
    if state == "none":
        return Check("lockdown", "ok", "none")
    if state == "integrity":
        return Check("lockdown", "ok", "integrity: tracing works, some of debugfs is closed")
    return Check(
        "lockdown", "missing", f"{state}: no tracing", "boot with lockdown=integrity or none"
    )


def _file_systems(files: HostFiles) -> Check:
    """Where need be ipitrace mounts both for itself alone, if it may."""
    mounted = {
        "tracefs": find_tracefs() is not None,
        "debugfs": files.listing(KVM_DIR) is not None,
    }
    absent = [name for name, there in mounted.items() if not there]
    if not absent:
        return Check("tracefs", "ok", "mounted, and debugfs shows KVM")
    if not may_mount(files):
        return Check(
            "tracefs",
            "warn",
            f"{' and '.join(absent)} cannot be read: not mounted, or CAP_DAC_READ_SEARCH missing",
            "mount -t tracefs tracefs /sys/kernel/tracing; mount -t debugfs debugfs "
            "/sys/kernel/debug; with CAP_SYS_ADMIN ipitrace does, for itself alone",
        )
    return Check("tracefs", "ok", f"{' and '.join(absent)} not mounted: we do, for us alone")


def _btf(files: HostFiles) -> Check:
    there = files.names(_BTF)
    if "vmlinux" not in there:
        return Check(
            "BTF",
            "warn",
            "none: fewer events can be read",
            "use a kernel with CONFIG_DEBUG_INFO_BTF=y (every distribution's of late)",
        )
    loaded = [name for name in files.names("/sys/module") if name.startswith("kvm")]
    modules = [n for n in loaded if files.text(f"/sys/module/{n}/refcnt") is not None]
    without = [name for name in modules if name not in there]
    if without:
        return Check(
            "BTF",
            "warn",
            f"of the kernel, not of {', '.join(without)}: their tracepoints cost more",
            "use a kernel with CONFIG_DEBUG_INFO_BTF_MODULES=y",
        )
    return Check("BTF", "ok", f"of the kernel and {', '.join(modules) or 'KVM, which is built in'}")


def check_bpf() -> Check:
    """Load a BPF program that does nothing."""
    try:
        load_trivial_program()
    except OSError as error:
        return Check(
            "BPF",
            "missing",
            f"the kernel refuses programs: {error.strerror}",
            "run it with sudo, outside of containers; the kernel needs CONFIG_BPF_SYSCALL=y",
        )
    return Check("BPF", "ok", "the kernel accepts a program")


def check_bcc() -> Check:
    """Import the distribution's bcc."""
    try:
        bcc = import_bcc()
    except HostError as error:
        return Check("bcc", "missing", error.message, error.hint)
    version = getattr(bcc, "__version__", "of unknown version")
    return Check("bcc", "ok", f"{version} in {Path(bcc.__file__ or '?').parent}")


def check_events(access: Collection[Check]) -> Check:
    """Compile and load every program, for one vCPU, and attach none.

    `access` is what check_access() found: with something missing, it is not tried.
    """
    if any(check.status == "missing" for check in access):
        return Check("events", "unknown", "not tried: see what is missing above")
    try:
        with Tracer.load(pid=os.getpid(), n_vcpus=1, slots_per_ring=2) as tracer:
            hooks, left_out = tracer.hooks, tracer.left_out
    except HostError as error:
        return Check("events", "missing", error.message, error.hint)
    tracepoints = [name for name in left_out if not EVENT_BY_NAME[name].symbol]
    functions = [name for name in left_out if EVENT_BY_NAME[name].symbol]
    says = f"{len(hooks)} of {len(EVENT_BY_NAME)} load"
    if functions:
        says += f"; {len(functions)} are functions this kernel lacks or hides"
    if not tracepoints:
        return Check("events", "ok", says)
    reasons = dict.fromkeys(left_out[name] for name in tracepoints)
    return Check(
        "events",
        "warn",
        f"{says}; missing tracepoints: {', '.join(tracepoints)}",
        "; ".join(reasons),
    )
