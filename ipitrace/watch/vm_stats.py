# SPDX-License-Identifier: Apache-2.0
"""Another process's VM's exits from KVM's statistics, for hosts on which kvm_exit never fires.

/sys/kernel/debug/kvm/<creator>-<fd>/<name> is the sum over the VM's vCPUs
(kvm_create_vm_debugfs() in virt/kvm/kvm_main.c); the names are struct kvm_vcpu_stat's in
arch/x86/include/asm/kvm_host.h.
"""

import errno
from collections.abc import Mapping

from ipitrace.host.files import HOST, HostFiles

KVM_DIR = "/sys/kernel/debug/kvm"
SOURCE = "KVM's statistics in debugfs (kvm_exit does not fire)"
TOTAL = "exits"
NAMES = (
    TOTAL,
    "halt_exits",
    "io_exits",
    "irq_exits",
    "irq_window_exits",
    "mmio_exits",
    "nmi_window_exits",
    "request_irq_exits",
    "signal_exits",
)


def read_vm_exits(directory: str | None, files: HostFiles = HOST) -> Mapping[str, int] | str:
    """The counters of NAMES in the VM's directory, or the reason why none can be read.

    `directory` is the name below KVM_DIR, None if not known.
    """
    if directory is None:
        return "debugfs does not show this VM"
    found = {name: files.number(f"{KVM_DIR}/{directory}/{name}") for name in NAMES}
    known = {name: value for name, value in found.items() if value is not None}
    if known:
        return known
    if TOTAL not in files.names(f"{KVM_DIR}/{directory}"):
        return "debugfs has no exit counters for this VM"
    refusal = files.refusal(f"{KVM_DIR}/{directory}/{TOTAL}")
    why = (refusal.strerror if refusal else None) or "no number"
    if refusal is not None and refusal.errno == errno.EPERM:
        why += "; see lockdown in 'ipitrace doctor'"
    return f"KVM's statistics in debugfs cannot be read ({why})"
